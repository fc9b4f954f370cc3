"""`python -m launch.doctor`."""

import sys

from launch.command.errors import user_errors
from launch.doctor import main

with user_errors():
    main(sys.argv[1:])
