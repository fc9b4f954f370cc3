"""Verify files against their checksums, with the files divided among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xxhash import xxh3_128

# While one thread waits for the disk, others hash.
HASHING_THREADS = 4
HASHED_BYTES = 4 * 2**20

# Called regularly to report progress of long work.
Tick = Callable[[], None]


def wrong_files(
    folder: Path,
    checksums: Mapping[str, str],
    listed_in: str,
    *,
    rank: int = 0,
    world: int = 1,
    tick: Tick = lambda: None,
) -> list[str]:
    """Return the problems with this rank's share of the files in ``folder``, one line each.

    ``checksums`` by file name come from the file ``listed_in``. ``tick`` is called for every block read.
    """
    mine = _share(folder, list(checksums), rank, world)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        problems = pool.map(lambda name: _problem(folder / name, checksums[name], listed_in, tick), mine)
        return [problem for problem in problems if problem]


def _share(folder: Path, names: list[str], rank: int, world: int) -> list[str]:
    """Return this rank's files. The largest are assigned first, each to the rank with the least to read."""
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else 0 for name in names}
    loads = [0] * world
    mine = []
    for name in sorted(names, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        loads[least] += sizes[name]
        if least == rank:
            mine.append(name)
    return mine


def _problem(path: Path, checksum: str, listed_in: str, tick: Tick) -> str | None:
    digest, block = xxh3_128(), memoryview(bytearray(HASHED_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(block):
                digest.update(block[:size])
                tick()
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if digest.hexdigest() != checksum:
        return f"{path.name} is damaged: its content does not match the checksum in {listed_in}"
    return None
