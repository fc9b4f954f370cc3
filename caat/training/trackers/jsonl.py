"""metrics.jsonl, the tracker of every run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from caat.training.trackers.tracker import Tracker


class JsonLines(Tracker):
    """Writes one JSON object per line and flushes it at once, so that a killed run keeps its metrics.

    When opened, it drops damaged lines and those of steps after ``done``, which a resumed run repeats; if
    ``done`` is None it keeps all. An incomplete last line is always dropped. If the run has no
    checkpoint of its own yet (``first``), metrics of an earlier start are moved to another file.
    """

    def __init__(self, path: Path, done: int | None, *, first: bool = False) -> None:
        if done is not None and first and path.is_file() and path.stat().st_size:
            _set_aside(path, f"an earlier start left no checkpoint, and training begins at step {done + 1}")
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
    """Return all lines except damaged ones; none if there is no file."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [record for record in map(_record, lines) if record is not None]


def _drop_torn_line(path: Path) -> None:
    """Truncate in place, because a run may be writing to the file; it only writes complete lines."""
    with path.open("r+b") as file:
        text = file.read()
        if not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)


def _set_aside(path: Path, why: str) -> None:
    numbered = (path.with_name(f"{path.stem}-aside-{number}{path.suffix}") for number in count(1))
    aside = path.rename(next(place for place in numbered if not place.exists()))
    print(f"caat: WARNING: {why}; {path.name} as it was is kept in {aside}", file=sys.stderr)


def _drop_lines_after(path: Path, done: int) -> None:
    """Keep complete lines of steps up to ``done``; the last line of a killed run may be incomplete."""
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
    """Parse a line of metrics; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
