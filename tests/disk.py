"""A disk that loses at a power cut whatever was not synced, to see that what must survive does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


class Disk:
    """Watches ``os.fsync`` and ``os.rename``: what is renamed must be on the disk, whole, under its old name.

    A file's content and the names in a folder are on the disk as they were when it was last synced.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._rename = os.rename
        monkeypatch.setattr(os, "fsync", self._sync_and_see)
        monkeypatch.setattr(os, "rename", self._see_and_rename)

    def lost(self, path: Path) -> list[str]:
        """What of the file or folder ``path`` and all below it a power cut would lose or change."""
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
            # Not through the descriptor: what is in Python's buffer alone is not in the file.
            self._contents[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _see_and_rename(self, source: Path, target: Path) -> None:
        assert not self.lost(Path(source)), f"renamed to {target} before it is on the disk"
        self._rename(source, target)
