"""`python -m launch.plan`."""

import sys

from launch.command.errors import user_errors
from launch.plan import main

with user_errors():
    main(sys.argv[1:])
