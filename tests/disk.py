"""A simulated disk that loses unsynced data in a power failure, to test that durable files survive."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


class Disk:
    """Watches ``os.fsync`` and ``os.rename``: whatever is renamed must first be completely on disk.

    The disk holds the content of a file, and the names in a folder, as of their last sync.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._rename = os.rename
        monkeypatch.setattr(os, "fsync", self._sync_and_see)
        monkeypatch.setattr(os, "rename", self._see_and_rename)

    def lost(self, path: Path) -> list[str]:
        """Return the paths at or below ``path`` that a power failure would lose or change."""
        inode = path.stat().st_ino
        if path.is_file():
            return [] if self._contents.get(inode) == path.read_bytes() else [str(path)]
        below = {each.name: each.stat().st_ino for each in path.iterdir()}
        names = [] if self._names.get(inode) == below else [f"{path}/"]
        return names + [lost for each in path.iterdir() for lost in self.lost(each)]

    def _sync_and_see(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            names = os.listdir(descriptor)
            self._names[status.st_ino] = {name: os.stat(name, dir_fd=descriptor).st_ino for name in names}
        else:
            # Read the file itself: data still in Python's buffer has not been written to it.
            self._contents[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _see_and_rename(self, source: Path, target: Path) -> None:
        assert not self.lost(Path(source)), f"renamed to {target} before it is on the disk"
        self._rename(source, target)
