"""The JSON file that a verb writes: its path is checked before the work starts and printed last."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any


def result_file(where: str | Path, setting: str = "out") -> Path:
    """Return ``where``, the value of ``setting``, as the path of a file that can be written; create nothing.

    Raises ``ValueError`` if it is a folder or if this user may not write there.
    """
    path = Path(where).expanduser()
    there = next(up for up in (path, *path.parents) if up.exists())
    if path.is_dir():
        problem = "it is a folder"
    elif there != path and not there.is_dir():
        problem = f"{there} is not a folder"
    elif said := _refused(there):
        problem = f"{there}: {said}"
    else:
        return path
    raise ValueError(f"the result cannot be written to {path} ({problem}): give another {setting}=")


def _refused(there: Path) -> str | None:
    """Return why this file or folder cannot be written, if so. Tries it: permissions alone do not tell."""
    try:
        if there.is_file():
            there.open("ab").close()
            there = there.resolve().parent
        TemporaryFile(dir=there).close()
    except OSError as error:
        return error.strerror
    return None


def write_json(path: Path, result: Any, indent: int | None = 2) -> None:
    """Write ``result`` to ``path``, as :func:`replace_text` does."""
    replace_text(path, json.dumps(result, indent=indent, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all. Its folder is created if necessary."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    # Names of folders may not be UTF-8.
    aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    aside.replace(path)


def keep_input(out: Path, given: str | None, **inputs: str | None) -> None:
    """Raise ``ValueError`` if ``out``, the result of ``out=given``, is one of the ``inputs``, by setting."""
    for name, path in inputs.items():
        if path is not None and _same(out, Path(path).expanduser()):
            raise ValueError(f"out={given} would overwrite {name}={path}: give another name")


def _same(one: Path, other: Path) -> bool:
    """Return whether both are the same file, or will be."""
    both = one.exists() and other.exists()
    return one.samefile(other) if both else one.resolve() == other.resolve()
