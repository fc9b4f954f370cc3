"""The JSON file that a verb leaves: its place is checked before the work, written after it, printed last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from conf.checks import require


def result_file(out: str | None, default: str | Path) -> Path:
    """``out``, or ``default``, as a file that can be written. Nothing is made yet.

    Raises ``ValueError`` if it is a folder, or lies where this user may not write.
    """
    path = Path(out or default).expanduser()
    there = next(up for up in (path, *path.parents) if up.exists())
    good = there.is_file() if there == path else there.is_dir()
    require(
        good and os.access(there, os.W_OK),
        f"the result cannot be written to {path} ({there} is {_what(there, path)}): give another out=",
    )
    return path


def write_json(path: Path, result: Any, indent: int | None = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=indent, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _what(there: Path, path: Path) -> str:
    if there == path and there.is_dir():
        return "a folder"
    return "not yours to write" if there.is_dir() or there == path else "no folder"
