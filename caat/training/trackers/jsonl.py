"""metrics.jsonl, which every run has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caat.training.trackers.tracker import Tracker


class JsonLines(Tracker):
    """One JSON object a line, flushed at once: a killed run keeps what it had.

    Lines of steps after ``done``, which a resumed run does again, are dropped first; None: all stay. A last
    line that a killed run left torn goes in any case.
    """

    def __init__(self, path: Path, done: int | None) -> None:
        if path.is_file() and done is not None:
            _drop_lines_after(path, done)
        elif path.is_file():
            _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        self._file.close()


def _drop_torn_line(path: Path) -> None:
    """In place: a run may be writing to the file, and never writes less than a line at a time."""
    with path.open("r+b") as file:
        text = file.read()
        if not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)


def _drop_lines_after(path: Path, done: int) -> None:
    """Keep whole lines of steps up to ``done``; the last line of a killed run may be torn."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= done:
                kept.append(line)
        except ValueError:
            continue
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(kept), encoding="utf-8")
    aside.rename(path)
