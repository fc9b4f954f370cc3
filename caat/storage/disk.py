"""Room on a disk, and how its lack is said: with the path, what is needed, and what is free."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

# How a file system says that it is full, or that the user's part of it is.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def nearest_folder(path: Path) -> Path:
    """``path``, or what is there of the folders that it is to lie in."""
    there = path.expanduser().resolve()
    return next(place for place in (there, *there.parents) if place.is_dir())


def free_bytes(path: Path) -> int | None:
    """What may still be written where ``path`` is or will be; None if its file system does not say."""
    usage = shutil.disk_usage(nearest_folder(path))
    return usage.free if usage.total else None


def size_text(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def disk_problem(error: OSError, where: Path, need: int) -> str:
    """What went wrong while ``need`` bytes were written to ``where``."""
    try:
        free = free_bytes(where)
    except OSError:
        free = None
    room = f" and {size_text(free)} are free" if free is not None else ""
    return f"{where}: {error.strerror or error}; {size_text(need)} are needed{room}"


def no_room(error: BaseException | None) -> OSError | None:
    """``error``, or what led to it, if that is a disk without room."""
    while error is not None and not (isinstance(error, OSError) and error.errno in FULL):
        error = error.__cause__ or error.__context__
    return error
