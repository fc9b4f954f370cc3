"""`python -m launch.bench`."""

import sys

from launch.bench import main
from launch.command.errors import user_errors

with user_errors():
    sys.exit(main(sys.argv[1:]))
