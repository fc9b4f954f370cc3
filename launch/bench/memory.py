"""Whether this machine has the memory that a benchmark needs."""

from __future__ import annotations

from caat.machine import host_memory
from conf.checks import require

GIB = 2**30


def check_memory(what: str, needed: int, remedy: str) -> None:
    """Raise ``ValueError`` if ``what``, settings such as size=9000gb, needs more bytes than are free."""
    free = host_memory()[1]
    require(
        needed <= free,
        f"{what} needs {needed / GIB:,.1f} GiB, and this machine has {free / GIB:.1f} GiB free: {remedy}",
    )
