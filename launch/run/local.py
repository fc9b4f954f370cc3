"""Sets up a run on this machine and trains it in worker processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import resolve_name
from pathlib import Path

from caat.runs.status import read_status, write_status
from conf.processes import LaunchConfig
from conf.schema import Config
from launch.command.errors import STOPPED, reason
from launch.command.processes import Stopped, run_workers
from launch.run.folder import leave_finished, open_run_folder
from launch.run.start import Start, make_start
from launch.run.validate import check_device, validate

WORKER = resolve_name("..pretrain", __package__)
BEFORE_TRAINING = "interrupted before training began"


def set_up(config: Config) -> Start | None:
    """Prepare everything before the first process starts: checks, data, run folder. Raises ``ValueError``.

    Returns None if all steps of the run are done; its folder keeps the configuration it was trained with.
    """
    check_device(config)
    validate(config, config.launch.processes)
    start = make_start(config, config.launch.processes)
    if start.step >= config.train.steps:
        leave_finished(config)
        return None
    return replace(start, folder=open_run_folder(config))


def run_in_processes(start: Start, launch: LaunchConfig) -> int:
    """Train the run of ``start``, which has a folder, in worker processes and return the exit status.

    A signal to this process is forwarded to the workers and raises :class:`Stopped`: with the status
    `STOPPED` if they saved before they ended, 0 if they finished.
    """
    folder = start.folder
    assert folder is not None
    arguments = ["--run-folder", str(folder), start.to_argument()]
    print(f"caat: starting {launch.processes} processes", file=sys.stderr, flush=True)
    try:
        with interrupts_kept(folder):
            status = run_workers(WORKER, arguments, launch.processes, launch.max_restarts)
    except Stopped:
        ended = read_status(folder)
        if ended == "finished":
            raise Stopped(0) from None  # only the final figures were missing when the signal came
        if ended == "starting":
            write_status(folder, "failed", BEFORE_TRAINING)
        elif ended == "running":
            write_status(folder, "failed", "ended by a signal before it could save")
        if ended != "stopped":
            raise
        raise Stopped(STOPPED) from None
    if status:
        if read_status(folder) in ("starting", "running"):
            # A killed worker could not write its status.
            write_status(folder, "failed", reason(status))
        print(f"the output of the run is in {folder}", file=sys.stderr)
    return status


@contextmanager
def interrupts_kept(folder: Path) -> Iterator[None]:
    """Record Ctrl-C before training starts in the status of the run in ``folder``."""
    try:
        yield
    except KeyboardInterrupt:
        if read_status(folder) == "starting":
            write_status(folder, "failed", BEFORE_TRAINING)
        raise
