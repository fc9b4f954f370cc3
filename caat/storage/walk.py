"""Walks through folders, linked ones included."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(
    top: Path, failed: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder below ``top`` once, with the names of its folders and files, like ``os.walk``.

    A link may lead back to where it lies. Names that the caller removes from the folders are left out.
    ``failed`` gets the error of each folder that cannot be read.
    """
    seen: set[str] = set()
    for place, folders, files in os.walk(top, onerror=failed, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(place), folders, files
