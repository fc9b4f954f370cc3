"""Errors of lm-eval tasks, with the task's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from conf.checks import first_line


class TaskError(ValueError):
    """A task cannot be run; the message starts with its name."""


@contextmanager
def naming(task: str) -> Iterator[None]:
    """Within this context, turn errors of ``task`` into :class:`TaskError`; pass on those of the model."""
    try:
        yield
    except TaskError:
        raise
    # Templates, metrics and functions of a task can raise anything.
    except Exception as error:
        modules = {frame.f_globals["__name__"] for frame, _ in walk_tb(error.__traceback__)}
        if f"{__package__}.lm_eval_model" in modules and not isinstance(error, ValueError):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise TaskError(f"task {task} cannot be run: {kind}{first_line(error)}") from error
