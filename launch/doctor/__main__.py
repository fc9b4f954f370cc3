"""`python -m launch.doctor`."""

import sys

from launch.doctor import main
from launch.errors import user_errors

with user_errors():
    main(sys.argv[1:])
