"""status.json of a run folder: where the run is, and why it failed."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caat.storage.records import read_record


def write_status(folder: Path, status: str, why: str = "") -> None:
    """Keep where a run is: ``starting``, ``running``, ``stopped`` (and saved), ``finished``, ``failed``.

    Where it cannot be written this is a warning: it must not hide how the run ended.
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
            # A full disk still has room for a small file where one was before.
            with path.open("r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()
        except OSError:
            print(
                f"caat: WARNING: {path} cannot be written ({error.strerror}); the run is {status}",
                file=sys.stderr,
            )


def read_status(folder: Path) -> str:
    """What :func:`write_status` wrote last; ``unknown`` if nothing, or the file is damaged."""
    return _read(folder).status


def read_why(folder: Path) -> str:
    """Why a run failed, as far as all of its processes knew; else empty."""
    return _read(folder).why


@dataclass(frozen=True)
class Status:
    """What status.json holds."""

    status: str = "unknown"
    why: str = ""


def _read(folder: Path) -> Status:
    try:
        return read_record(folder / "status.json", Status)
    except ValueError:
        return Status()
