"""Benchmarks of lm-eval on a model: run, and what came of them."""

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

# {task: {metric: value}}, a metric's standard error beside it as <metric>_stderr where it is known.
Results = dict[str, dict[str, float]]


def evaluate(
    model: CaatLM,
    tasks: Tasks,
    limit: int | None = None,
    num_fewshot: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Results:
    """Run ``tasks`` on the first ``limit`` documents of each (None: all).

    Every process must call it alike; only the first of a node gets results. Nothing random that is drawn
    here is missed elsewhere. ``tick`` is called whenever lm-eval moves a bar of its own.

    Raises ``ValueError`` naming the task for one that fails.
    """
    # lm-eval would resample in forked processes, which gloo's threads do not survive.
    os.environ["DISABLE_MULTIPROC"] = "1"
    # It asks git for the revision of the current folder, and git complains on the terminal if that has none.
    no_git = patch("lm_eval.evaluator.get_git_commit_hash", return_value=None, create=True)
    # Its bars and notes would come from every process at once.
    results: Results = {}
    with _randomness_kept(), no_git, redirect_stdout(StringIO()), redirect_stderr(_Bars(tick)):
        # One at a time: lm-eval does not say which of several fails.
        for name in tasks.names:
            with naming(name):
                found = simple_evaluate(
                    model=model,
                    tasks=[name],
                    task_manager=tasks.manager,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    # Only for metrics that have no formula for their standard error.
                    bootstrap_iters=100,
                    log_samples=False,
                )
            if found is not None:
                results |= {task: _metrics(values) for task, values in found["results"].items()}
    return results


def flat(results: Results) -> dict[str, float]:
    """As trackers take them: ``eval/<task>/<metric>``, without standard errors."""
    return {
        f"eval/{task}/{metric}": value
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if not metric.endswith("_stderr")
    }


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """lm-eval writes ``metric,filter``; the filter ``none`` is left out, as is all that is no number.

    A standard error, ``metric_stderr,filter`` there, is ``metric,filter_stderr`` here.
    """
    found = {}
    for name, value in values.items():
        metric, comma, by = name.partition(",")
        if comma and isinstance(value, Real) and not np.isnan(float(value)):
            of = metric.removesuffix("_stderr")
            filtered = of if by == "none" else f"{of},{by}"
            found[filtered + metric[len(of) :]] = float(value)
    return found


class _Bars(StringIO):
    """Where the bars that lm-eval draws of documents and metrics go."""

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
