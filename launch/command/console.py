"""The console that tables are printed to."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 160


def console() -> Console:
    """Return the console of standard output: as wide as the terminal, or `WIDE` in a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)
