"""Trains the runs of a sweep one after another, each in new processes, so that runs share no state."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence

from caat.runs.status import read_why
from launch.command.errors import STOPPED, USER_ERROR, reason
from launch.command.processes import Stopped, stopped_by_signals
from launch.run.local import run_in_processes, set_up
from launch.sweep.outcomes import Outcome
from launch.sweep.run import Run


def train(runs: Sequence[Run], outcomes: Mapping[str, Outcome]) -> None:
    """Train each of ``runs`` and record its outcome; if one fails, the others are still trained.

    Raises :class:`Stopped` if a signal came.
    """
    with stopped_by_signals():
        for number, run in enumerate(runs, 1):
            print(f"run {number} of {len(runs)}: {run.folder}", flush=True)
            outcome = outcomes[run.name]
            try:
                outcome.status, outcome.why = _train(run)
            except Stopped as stop:
                if stop.code == 0:
                    outcome.status = "finished"
                    raise Stopped(STOPPED) from None
                outcome.status, outcome.why = "stopped", reason(int(stop.code or STOPPED))
                raise


def _train(run: Run) -> tuple[str, str]:
    try:
        start = set_up(run.config)
        if start is None:
            return "finished", ""
        status = run_in_processes(start, run.config.launch)
    except ValueError as error:
        return "failed", f"{reason(USER_ERROR)}: {error}"
    except Exception as error:
        # For instance a full disk: the other runs may still succeed.
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    if status == STOPPED:
        # The signal went to a process of this run, not to the sweep.
        return "stopped", reason(status)
    return ("failed", read_why(run.folder) or reason(status)) if status else ("finished", "")
