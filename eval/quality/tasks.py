"""Tasks of lm-evaluation-harness, by name or from a folder of task files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.checks import first_line, require
from eval.quality.task_error import TaskError, naming

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

PAPER = ("wikitext", "lambada_openai", "hellaswag", "winogrande", "piqa", "openbookqa", "boolq")


@dataclass(frozen=True)
class Tasks:
    """Task names, and the manager that loads them."""

    names: list[str]
    manager: TaskManager

    def check(self, context: int, num_fewshot: int | None = None) -> None:
        """Raise ``ValueError`` if a task's data is unavailable or a model of this ``context`` cannot run it.

        Also if lm-eval would ignore ``num_fewshot``. Downloads are cached.
        """
        for name in self.names:
            try:
                loaded = self.manager.load([name])["tasks"]
            except Exception as error:
                # Any error: from the network, the file system, a library or the task file.
                raise TaskError(
                    f"task {name} cannot be loaded ({first_line(error)}): correct its task file, or provide "
                    "its data, which comes from the Hugging Face hub or from the data_files of that file"
                ) from error
            for task, its in loaded.items():
                with naming(task):
                    _check_kind(its)
                    _check_examples(its, num_fewshot)
                    if its.OUTPUT_TYPE == "generate_until":
                        _check_generation(its.config.generation_kwargs or {}, context)


def find_tasks(given: Sequence[str]) -> Tasks:
    """Return the tasks that ``given`` names: task names, ``paper``, or folders of task files (all in them).

    Raises ``ValueError`` if lm-eval is not installed, a name is unknown or a folder holds no task.
    """
    require(
        find_spec("lm_eval") is not None,
        "evaluation needs lm-eval, which is not installed: pip install lm-eval",
    )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    given = [str(Path(each).expanduser()) for each in given]
    folders = [each for each in given if _is_folder(each)]
    named = [
        name for each in given if each not in folders for name in (PAPER if each == "paper" else (each,))
    ]
    names = _tasks_in(folders)
    # Reading lm-eval's own thousands of tasks takes seconds, and only names need them.
    manager = TaskManager(include_path=folders, include_defaults=bool(named))
    for name in named:
        if name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm_eval ls tasks` lists all"
            raise ValueError(
                f"tasks={name} is neither a task of lm-eval nor a folder with task files: {hint}"
            )
    return Tasks(list(dict.fromkeys([*names, *named])), manager)


def _check_kind(task: Any) -> None:
    require(not getattr(task, "UNSAFE_CODE", False), "it runs programs that the model writes")
    require(not getattr(task, "MULTIMODAL", False), "it gives images or audio to the model")


def _check_examples(task: Any, given: int | None) -> None:
    remedy = f"so that lm-eval ignores num_fewshot={given} for it: leave num_fewshot out, or the task"
    require(not given or task.OUTPUT_TYPE != "loglikelihood_rolling", f"it measures whole texts, {remedy}")
    require(not given or task.config.num_fewshot != 0, f"its file has num_fewshot: 0, {remedy}")


def _check_generation(arguments: dict[str, Any], context: int) -> None:
    from eval.quality.lm_eval_model import sampling

    generated = sampling(arguments).max_new_tokens
    require(
        generated < context,
        f"it generates up to {generated} tokens, which leaves no room in the model's context of {context}: "
        "lower max_gen_toks in its generation_kwargs",
    )


def _is_folder(name: str) -> bool:
    """Return whether ``name`` is a folder of tasks, and not a folder that only shares a task's name."""
    return "/" in name or (name != "paper" and any(Path(name).rglob("*.yaml")))


def _tasks_in(folders: Sequence[str]) -> list[str]:
    from lm_eval.tasks import TaskManager

    names: list[str] = []
    for folder in folders:
        require(
            Path(folder).is_dir(),
            f"tasks={folder} is not a folder: give one with lm-eval task files, or names of lm-eval tasks",
        )
        found = TaskManager(include_path=folder, include_defaults=False).all_subtasks
        require(bool(found), f"tasks={folder} holds no task: no .yaml file in it describes one")
        names += found
    return names
