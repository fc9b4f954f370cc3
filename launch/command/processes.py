"""Several processes of a verb on this node, started and watched by torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from caat.machine import available_cores
from launch.command.errors import STOPPED, USER_ERROR, signal_name

ELASTIC = "torch.distributed.elastic"
# Slurm warns with SIGUSR1: the workers are to hear of it too.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
# What the workers get to save and end after a signal, before they are killed: whatever a step takes. Who does
# not want to wait presses Ctrl-C again.
SHUTDOWN_SECONDS = 86400


class Stopped(SystemExit):
    """A signal ended the processes, and is to end this one: with the status that a shell would report."""


def run_workers(module: str, arguments: Sequence[str], processes: int, max_restarts: int = 0) -> int:
    """``python -m module arguments`` in ``processes`` processes; 0, or the status of the first to fail.

    If one fails, all of them are ended and started again, ``max_restarts`` times. Signals reach the workers,
    which get `SHUTDOWN_SECONDS` to end; then :class:`Stopped` is raised.
    """
    # Here and not by a torchrun of its own, which would bury the worker's traceback under two others.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # What becomes of the processes we say ourselves; each has a level of its own.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(ELASTIC)]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    environment = dict(os.environ)
    os.environ.update(worker_environment(processes))
    handlers = {number: signal.getsignal(number) for number in _heard()}
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={max_restarts}"]
    try:
        run(parse_args([*options, "-m", module, *arguments]))
    except ChildFailedError as error:
        # Of those that ended at about the same time, one that was killed did not end because of another.
        rank, failure = min(
            error.failures.items(),
            key=lambda item: (item[1].exitcode != -signal.SIGKILL, item[1].timestamp),
        )
        if failure.exitcode not in (USER_ERROR, STOPPED):
            verb, how = module.rpartition(".")[2], _how(failure.exitcode)
            print(f"caat: {verb} failed: rank {rank} ended first, {how}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        number = int(error.sigval)
        print(f"caat: stopped by {signal.Signals(number).name}", file=sys.stderr)
        raise Stopped(128 + number) from None
    finally:
        # torch leaves its own, which would raise SignalException wherever this process is by then.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # The next run of a sweep may have other processes.
        os.environ.clear()
        os.environ.update(environment)
    return 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within it, the signals that end workers raise :class:`Stopped` here while none are running."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(128 + number)

    before = {number: signal.signal(number, stop) for number in _heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def worker_environment(processes: int) -> dict[str, str]:
    """What ``processes`` workers on this node are to have in their environment beside what is in ours."""
    default = {
        "OMP_NUM_THREADS": str(max(1, available_cores() // processes)),
        "PET_SIGNALS_TO_HANDLE": ",".join(number.name for number in _heard()),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
    }
    return {name: os.environ.get(name, value) for name, value in default.items()} | {
        # Workers import what this process imports, whatever folder it was started in: "-m" alone would look
        # for launch and conf in that folder first.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in sys.path)),
    }


def _heard() -> list[signal.Signals]:
    """What nohup, say, has told this process to ignore stays ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _how(exitcode: int) -> str:
    return f"killed by {signal_name(-exitcode)}" if exitcode < 0 else f"with status {exitcode}"
