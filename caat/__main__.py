"""The command `caat` and `python -m caat`. It is here because a wheel has `launch` inside of this package."""

from __future__ import annotations

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
