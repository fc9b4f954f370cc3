"""Tasks of lm-evaluation-harness, by name or from a folder of task files."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from conf.schema import require

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

PAPER = ("wikitext", "lambada_openai", "hellaswag", "winogrande", "piqa", "openbookqa", "boolq")


@dataclass(frozen=True)
class Tasks:
    """Names, and what knows them."""

    names: list[str]
    manager: TaskManager


def find_tasks(given: Sequence[str]) -> Tasks:
    """What ``given`` means: task names, ``paper``, folders of task files (every task in them).

    Raises ``ValueError`` if lm-eval is not installed, a name is unknown or a folder holds no task.
    """
    require(
        find_spec("lm_eval") is not None,
        "evaluation needs lm-eval, which is not installed: pip install 'caat[eval]'",
    )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folders = [Path(each).expanduser() for each in given if _is_folder(each)]
    named = [name for each in given if not _is_folder(each) for name in (PAPER if each == "paper" else (each,))]
    names = [name for folder in folders for name in _tasks_in(folder)]
    # Reading lm-eval's own thousands of tasks takes seconds.
    manager = TaskManager(include_path=[str(folder) for folder in folders] or None, include_defaults=bool(named))
    for name in named:
        if name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm_eval ls tasks` lists all"
            raise ValueError(
                f"tasks={name} is neither a task of lm-eval nor a folder: {hint} (tasks=paper is the paper's seven)"
            )
    return Tasks(list(dict.fromkeys(names + named)), manager)


def _is_folder(name: str) -> bool:
    """A folder is meant by a path; in the working folder, something named like a task is the task."""
    return "/" in name or name in (".", "..")


def _tasks_in(folder: Path) -> list[str]:
    require(folder.is_dir(), f"tasks={folder} is not a folder: give one with task files of lm-eval, or task names")
    files = sorted(folder.rglob("*.yaml"))
    found = [re.search(r"^task:\s*[\"']?([\w.-]+)", file.read_text(encoding="utf-8"), re.M) for file in files]
    names = [match[1] for match in found if match]
    require(bool(names), f"tasks={folder} holds no task file: no .yaml in it has a line `task: name`")
    return names
