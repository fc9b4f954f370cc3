"""A run on this machine: what comes before its processes, and the processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from caat.runs.status import read_status, write_status
from conf.processes import LaunchConfig
from conf.schema import Config
from launch.command.errors import STOPPED, reason
from launch.command.processes import Stopped, run_workers
from launch.run.folder import leave_finished, open_run_folder
from launch.run.start import Start, make_start
from launch.run.validate import check_device, validate

BEFORE_TRAINING = "interrupted before training began"


def set_up(config: Config) -> Start | None:
    """All that comes before the first process: checks, data, run folder. Raises ``ValueError``.

    None if all steps of the run are done: its folder goes on to say what it was trained with.
    """
    check_device(config)
    validate(config, config.launch.processes)
    start = make_start(config)
    if start.step >= config.train.steps:
        leave_finished(config)
        return None
    return replace(start, folder=open_run_folder(config))


def run_in_processes(start: Start, launch: LaunchConfig) -> int:
    """Train the run of ``start``, which has a folder, on processes of its own; returns the exit status.

    A signal to this process reaches them, and raises :class:`Stopped`: with the status `STOPPED` if they
    saved before they ended, 0 if they finished.
    """
    folder = start.folder
    assert folder is not None
    arguments = ["--run-folder", str(folder), start.to_argument()]
    print(f"caat: starting {launch.processes} processes", file=sys.stderr, flush=True)
    try:
        with interrupts_kept(folder):
            status = run_workers("launch.pretrain", arguments, launch.processes, launch.max_restarts)
    except Stopped:
        ended = read_status(folder)
        if ended == "finished":
            raise Stopped(0) from None  # the signal came when all was done but the last figures
        if ended == "starting":
            write_status(folder, "failed", BEFORE_TRAINING)
        elif ended == "running":
            write_status(folder, "failed", "ended by a signal before it could save")
        if ended != "stopped":
            raise
        raise Stopped(STOPPED) from None
    if status:
        if read_status(folder) in ("starting", "running"):
            # Killed, it could not say so itself.
            write_status(folder, "failed", reason(status))
        print(f"what was written is in {folder}", file=sys.stderr)
    return status


@contextmanager
def interrupts_kept(folder: Path) -> Iterator[None]:
    """Ctrl-C before training began is the status of the run in ``folder`` as well."""
    try:
        yield
    except KeyboardInterrupt:
        if read_status(folder) == "starting":
            write_status(folder, "failed", BEFORE_TRAINING)
        raise
