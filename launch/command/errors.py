"""How a user's mistake ends a command: one line on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from time import sleep
from typing import NoReturn

from caat.parallel.world import check_launcher, is_first_rank, rank_name
from caat.storage.disk import no_room

# Exit statuses.
USER_ERROR = 2
NOT_FINITE = 3
DRIFTED = 4
HUNG = 5
NOT_SAVED = 6
# Stopped by a signal, and saved: the same command goes on from there with resume=auto. As in sysexits.h:
# "temporary failure, try again later".
STOPPED = 75
INTERRUPTED = 130
REASONS = {
    USER_ERROR: "a mistake in the settings, or no good checkpoint",
    NOT_FINITE: "too many steps in a row were not finite",
    DRIFTED: "copies of a tensor differ between processes",
    HUNG: "no progress for launch.hang_seconds",
    NOT_SAVED: "a checkpoint could not be written",
    STOPPED: "stopped by a signal, saved",
    INTERRUPTED: "interrupted",
}
OURS = ("caat", "conf", "eval", "launch", "layers")
# What rank 0 gets to report a mistake that all ranks see, before another one does.
PATIENCE_SECONDS = 10.0


def reason(status: int) -> str:
    """Why a run ended with the exit status ``status``, in words."""
    if status in REASONS:
        return REASONS[status]
    if status - 128 in signal.valid_signals():
        return f"a process was ended by {signal_name(status - 128)}"
    return f"a process failed with status {status}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time ones have none


def fail(message: str) -> NoReturn:
    """Print ``caat: error: message`` as one line and exit with status 2.

    All ranks of a run see most mistakes, and one of them is to report it: rank 0. The others wait, since
    torchrun stops all ranks as soon as one has exited, and report what rank 0 turned out not to see.
    """
    if not is_first_rank():
        sleep(PATIENCE_SECONDS)
        message = f"rank {rank_name()}: {message}"
    print(f"caat: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR)


def announce(argv: Sequence[str]) -> None:
    """Say that training is on its way: what it imports, and its text, take their time."""
    shows = any(text.startswith("-") and text not in ("-m", "--multirun") for text in argv)
    if not shows and is_first_rank():
        print("caat: starting: reading the settings", file=sys.stderr, flush=True)


@contextmanager
def user_errors() -> Iterator[None]:
    """Within it, a ``ValueError`` that our code raises ends in `fail`, and so does a full disk.

    One that a library raises is our mistake, not the user's, and keeps its traceback. What the terminal has
    no character for is printed as an escape: no work is lost for want of it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        check_launcher()
        _check_folder()
        try:
            yield
        finally:
            sys.stdout.flush()
    except ValueError as error:
        if _raised_by_us(error):
            fail(str(error))
        raise
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # As in `caat plan | head`; what is left of our output has to go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if not (full := no_room(error)):
            raise
        # A file that is written to does not say its name.
        fail(f"{full.strerror} ({full.filename or 'df shows where'}): make room")
    except KeyboardInterrupt:
        with suppress(OSError):
            print("caat: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def only_warned(what: str) -> Iterator[None]:
    """Within it, whatever is raised is a warning: the model is trained and saved, ``what`` comes on top."""
    try:
        yield
    # Plots, reports and disks fail in ways of their own.
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"caat: WARNING: {what} could not be made ({text})", file=sys.stderr, flush=True)


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the current folder was deleted: cd to another one") from None


def _reader_is_gone() -> bool:
    """Whether it was our output that broke, and not another pipe or a connection."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _raised_by_us(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # "python -m launch.pretrain" names its module __main__, and says in the spec what it is.
    scope = frames[-1].f_globals
    name = scope["__spec__"].name if scope.get("__spec__") else scope["__name__"]
    return name.split(".")[0] in OURS
