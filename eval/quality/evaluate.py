"""Runs lm-eval benchmarks on a model and collects the results."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from numbers import Real
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lm_eval import simple_evaluate

from eval.quality.lm_eval_model import CaatLM
from eval.quality.task_error import naming
from eval.quality.tasks import Tasks

# {task: {metric: value}}; a metric's standard error, if known, is <metric>_stderr.
Results = dict[str, dict[str, float]]


def evaluate(
    model: CaatLM,
    tasks: Tasks,
    limit: int | None = None,
    num_fewshot: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Results:
    """Run ``tasks`` on the first ``limit`` documents of each (None: all).

    Every process must make the same call; only the first of a node gets results. Random states are restored
    afterwards. ``tick`` is called whenever lm-eval updates one of its progress bars.

    Raises ``ValueError`` with the task's name if one fails.
    """
    # lm-eval would bootstrap in forked processes, which gloo's threads do not survive.
    os.environ["DISABLE_MULTIPROC"] = "1"
    # lm-eval asks git for the revision of the current folder, and git prints an error if there is none.
    no_git = patch("lm_eval.evaluator.get_git_commit_hash", return_value=None, create=True)
    # Every process would print lm-eval's progress bars and notes.
    results: Results = {}
    with _randomness_kept(), no_git, redirect_stdout(StringIO()), redirect_stderr(_Bars(tick)):
        # One task per call: lm-eval does not say which of several failed.
        for name in tasks.names:
            with naming(name):
                found = simple_evaluate(
                    model=model,
                    tasks=[name],
                    task_manager=tasks.manager,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    # Used only for metrics without a formula for their standard error.
                    bootstrap_iters=100,
                    log_samples=False,
                )
            if found is not None:
                results |= {task: _metrics(values) for task, values in found["results"].items()}
    return results


def flat(results: Results) -> dict[str, float]:
    """Return the results for trackers: ``eval/<task>/<metric>``, without standard errors."""
    return {
        f"eval/{task}/{metric}": value
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if not metric.endswith("_stderr")
    }


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers in lm-eval's results by name; lm-eval's ``metric,none`` becomes ``metric``.

    A standard error, ``metric_stderr,filter`` there, becomes ``metric,filter_stderr``.
    """
    found = {}
    for name, value in values.items():
        metric, comma, by = name.partition(",")
        if comma and isinstance(value, Real) and np.isfinite(float(value)):
            of = metric.removesuffix("_stderr")
            filtered = of if by == "none" else f"{of},{by}"
            found[filtered + metric[len(of) :]] = float(value)
    return found


class _Bars(StringIO):
    """A stream for lm-eval's progress bars that only calls ``tick``."""

    def __init__(self, tick: Callable[[], None]) -> None:
        super().__init__()
        self._tick = tick

    def write(self, text: str) -> int:
        self._tick()
        return len(text)


@contextmanager
def _randomness_kept() -> Iterator[None]:
    state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(state[0])
    np.random.set_state(state[1])
