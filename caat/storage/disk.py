"""Free disk space, and error messages about it that name the path, the bytes needed and the bytes free."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

# Errors by which a file system reports that it is full or that a quota or size limit is reached.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def nearest_folder(path: Path) -> Path:
    """Return ``path`` if it is a folder, else the nearest of its parents that exists."""
    there = path.expanduser().resolve()
    return next(place for place in (there, *there.parents) if place.is_dir())


def free_bytes(path: Path) -> int | None:
    """Return the free bytes on the file system of ``path``, which need not exist. None if not reported."""
    usage = shutil.disk_usage(nearest_folder(path))
    return usage.free if usage.total else None


def size_text(count: int) -> str:
    """Format a number of bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def disk_problem(error: OSError, where: Path, need: int) -> str:
    """Describe an error that occurred while writing ``need`` bytes to ``where``."""
    try:
        free = free_bytes(where)
    except OSError:
        free = None
    room = f" and {size_text(free)} are free" if free is not None else ""
    return f"{where}: {error.strerror or error}; {size_text(need)} are needed{room}"


def no_room(error: BaseException | None) -> OSError | None:
    """Return ``error``, or the error that caused it, if it reports a full disk, else None."""
    while error is not None and not (isinstance(error, OSError) and error.errno in FULL):
        error = error.__cause__ or error.__context__
    return error
