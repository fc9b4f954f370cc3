"""The command that resumes a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from conf.reading.explain import is_hydras
from conf.reading.options import FOLDERS


def resume_command(settings: Sequence[str], folder: Path) -> str:
    """Return the shell command that resumes the run in ``folder``, which was started with ``settings``."""
    replaced = ("resume=", "run.dir=")
    kept = [text for text in settings if not (is_hydras(text) or text.startswith(replaced))]
    own = [word for each in FOLDERS[1:] for word in ("--config-dir", str(each))]
    return shlex.join(["caat", "pretrain", *own, *kept, f"run.dir={quoted(folder)}", "resume=auto"])


def how_to_resume(settings: Sequence[str], folder: Path, torchrun: bool = False) -> str:
    """Return the line printed after a stop. ``torchrun``: a launcher like it started the processes."""
    if torchrun:
        return f"to resume: the same torchrun command, with run.dir={quoted(folder)} resume=auto"
    return f"to resume: {resume_command(settings, folder)}"


def quoted(path: Path) -> str:
    """Quote ``path`` as a value for Hydra, which reads some characters as syntax."""
    text = str(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "\\'") + "'"
