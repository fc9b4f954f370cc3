"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 160


def console() -> Console:
    """Of standard output: as wide as the terminal, and wide enough for any table in a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)
