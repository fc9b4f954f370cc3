"""Write small files and folders that survive a power failure once these functions have returned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from xxhash import xxh3_128


def write_json(path: Path, values: dict[str, Any]) -> str:
    """Write ``values`` as JSON and return the file's checksum."""
    return write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> str:
    """Write ``data`` and return its checksum."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return xxh3_128(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the directory entries of ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
