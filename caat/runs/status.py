"""status.json of a run directory: the state of the run, and why it failed."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caat.storage.records import read_record

# Where slurm/train.sh keeps the status of an earlier start.
SET_ASIDE = "status.json.before"


def write_status(folder: Path, status: str, why: str = "") -> None:
    """Write the state of a run: ``starting``, ``running``, ``stopped`` (and saved), ``finished``, ``failed``.

    If the file cannot be written, this only warns: it must not hide how the run ended.
    """
    path, aside = folder / "status.json", folder / ".status.tmp"
    text = json.dumps({"status": status, "why": why}) + "\n"
    try:
        aside.write_text(text, encoding="utf-8")
        aside.rename(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        try:
            # On a full disk, overwriting the existing small file in place still works.
            with path.open("r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()
        except OSError:
            print(
                f"caat: WARNING: {path} cannot be written ({error.strerror}); the run is {status}",
                file=sys.stderr,
            )


def read_status(folder: Path) -> str:
    """Return the status written last by :func:`write_status`; ``unknown`` if missing or damaged."""
    return _read(folder).status


def read_earlier_status(folder: Path) -> str:
    """Return :func:`read_status`, or that of an earlier start, which a batch script sets aside."""
    before = folder / SET_ASIDE
    return _read(folder, SET_ASIDE).status if before.is_file() else read_status(folder)


def read_why(folder: Path) -> str:
    """Return why a run failed, as far as its processes knew; empty otherwise."""
    return _read(folder).why


@dataclass(frozen=True)
class Status:
    """Content of status.json."""

    status: str = "unknown"
    why: str = ""


def _read(folder: Path, name: str = "status.json") -> Status:
    try:
        return read_record(folder / name, Status)
    except ValueError:
        return Status()
