"""`python -m launch.report`."""

import sys

from launch.command.errors import user_errors
from launch.report import main

with user_errors():
    main(sys.argv[1:])
