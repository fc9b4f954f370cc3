"""metrics.jsonl, which every run has."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from caat.training.trackers.tracker import Tracker


class JsonLines(Tracker):
    """One JSON object a line, flushed at once: a killed run keeps what it had.

    Lines of steps after ``done``, which a resumed run does again, are dropped first, and those that are
    damaged; None: all stay. A last line that a killed run left torn goes in any case. Where training begins
    (0), all that an earlier start left is kept aside: there is no checkpoint for it.
    """

    def __init__(self, path: Path, done: int | None) -> None:
        if done == 0 and path.is_file() and path.stat().st_size:
            _set_aside(path, "an earlier start left no checkpoint, and training begins at step 1")
        elif path.is_file() and done is not None:
            _drop_lines_after(path, done)
        elif path.is_file():
            _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All lines but those that are damaged; none if there is no file."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [record for record in map(_record, lines) if record is not None]


def _drop_torn_line(path: Path) -> None:
    """In place: a run may be writing to the file, and never writes less than a line at a time."""
    with path.open("r+b") as file:
        text = file.read()
        if not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)


def _set_aside(path: Path, why: str) -> None:
    numbered = (path.with_name(f"{path.stem}-aside-{number}{path.suffix}") for number in count(1))
    aside = path.rename(next(place for place in numbered if not place.exists()))
    print(f"caat: WARNING: {why}; {path.name} as it was is kept in {aside}", file=sys.stderr)


def _drop_lines_after(path: Path, done: int) -> None:
    """Keep whole lines of steps up to ``done``; the last line of a killed run may be torn."""
    *lines, _ = path.read_bytes().split(b"\n")
    steps = [None if record is None else record["step"] for record in map(_record, lines)]
    kept = [
        line + b"\n" for line, step in zip(lines, steps, strict=True) if step is not None and step <= done
    ]
    new = path.with_suffix(".tmp")
    new.write_bytes(b"".join(kept))
    if damaged := steps.count(None):
        _set_aside(path, f"lines of {path} that are damaged are left out ({damaged})")
    new.rename(path)


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of metrics; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
