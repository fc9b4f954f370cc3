"""Worker processes of a verb on this node, started and monitored by torchrun's agent."""

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
# Slurm warns with SIGUSR1, which has to reach the workers too.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
# How long workers may take to save and exit after a signal before they are killed: more than any step takes.
# A user who does not want to wait presses Ctrl-C again.
SHUTDOWN_SECONDS = 86400


class Stopped(SystemExit):
    """Raised after a signal ended the workers, to end this process with the status a shell would report."""


def run_workers(module: str, arguments: Sequence[str], processes: int, max_restarts: int = 0) -> int:
    """Run ``python -m module arguments`` in ``processes`` workers; return 0 or the first failure's status.

    If one fails, all are stopped and restarted, up to ``max_restarts`` times. Signals are forwarded to the
    workers, which have `SHUTDOWN_SECONDS` to exit; then :class:`Stopped` is raised.
    """
    # The agent runs in this process: a separate torchrun would bury the worker's traceback under two others.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # We report failures ourselves. Setting the parent's level is not enough: each logger has its own.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(ELASTIC)]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    environment = dict(os.environ)
    os.environ.update(worker_environment(processes))
    handlers = {number: signal.getsignal(number) for number in _handled_signals()}
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={max_restarts}"]
    try:
        run(parse_args([*options, "-m", module, *arguments]))
    except ChildFailedError as error:
        # Among workers that ended at about the same time, a killed one did not fail because of another.
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
        # torch leaves its handlers installed, which would raise SignalException anywhere in later code.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # The next run of a sweep may use a different number of processes.
        os.environ.clear()
        os.environ.update(environment)
    return 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within this context, signals that end workers raise :class:`Stopped` here while none are running."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(128 + number)

    before = {number: signal.signal(number, stop) for number in _handled_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def worker_environment(processes: int) -> dict[str, str]:
    """Return the variables that ``processes`` workers on this node need in addition to our environment."""
    default = {
        "OMP_NUM_THREADS": str(max(1, available_cores() // processes)),
        "PET_SIGNALS_TO_HANDLE": ",".join(number.name for number in _handled_signals()),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
    }
    return {name: os.environ.get(name, value) for name, value in default.items()} | import_environment()


def import_environment() -> dict[str, str]:
    """Return the variables with which another Python imports the same modules as this one.

    ``python -m`` alone would look for launch and conf in the current folder first.
    """
    return {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in sys.path)),
    }


def _handled_signals() -> list[signal.Signals]:
    """Return the signals to handle. Those that are ignored, for instance under nohup, stay ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _how(exitcode: int) -> str:
    return f"killed by {signal_name(-exitcode)}" if exitcode < 0 else f"with status {exitcode}"
