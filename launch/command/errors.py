"""Error handling of commands: a user's mistake gives one line on stderr and exit status 2, no traceback."""

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
from caat.supervision.exit_status import HUNG, INTERRUPTED

# Exit statuses, in addition to HUNG and INTERRUPTED.
USER_ERROR = 2
NOT_FINITE = 3
DRIFTED = 4
NOT_SAVED = 6
# Stopped by a signal after saving: the same command resumes with resume=auto. As in sysexits.h: "temporary
# failure, try again later".
STOPPED = 75
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
# How long other ranks wait for rank 0 to report a mistake that all ranks see.
PATIENCE_SECONDS = 10.0


def reason(status: int) -> str:
    """Return why a run ended with the exit status ``status``, in words."""
    if status in REASONS:
        return REASONS[status]
    if status - 128 in signal.valid_signals():
        return f"a process was ended by {signal_name(status - 128)}"
    return f"a process failed with status {status}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals have no name


def fail(message: str) -> NoReturn:
    """Print ``caat: error: message`` as one line and exit with status 2.

    All ranks of a run see most mistakes, and only rank 0 should report them. The others wait, because
    torchrun stops all ranks as soon as one exits, and then report what rank 0 did not see.
    """
    if not is_first_rank():
        sleep(PATIENCE_SECONDS)
        message = f"rank {rank_name()}: {message}"
    print(f"caat: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR)


def announce(argv: Sequence[str]) -> None:
    """Print that training is starting: its imports and its text take time."""
    shows = any(text.startswith("-") and text not in ("-m", "--multirun") for text in argv)
    if not shows and is_first_rank():
        print("caat: starting: reading the settings", file=sys.stderr, flush=True)


@contextmanager
def user_errors() -> Iterator[None]:
    """Within this context, call `fail` for a ``ValueError`` that our code raises and for a full disk.

    A ``ValueError`` that a library raises is our mistake, not the user's, and keeps its traceback. Characters
    that the terminal cannot show are printed as escapes, so that they do not fail the command.
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
        # As in `caat plan | head`. Python flushes the rest of our output at exit: send it to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except PermissionError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: permission denied: check the rights of its folders, or give another path")
    except OSError as error:
        if not (full := no_room(error)):
            raise
        # Errors of write() do not name the file.
        fail(f"{full.strerror} ({full.filename or 'df shows where'}): make room")
    except KeyboardInterrupt:
        with suppress(OSError):
            print("caat: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def only_warned(what: str) -> Iterator[None]:
    """Within this context, turn errors into warnings: the model is saved already, ``what`` is an extra."""
    try:
        yield
    # Plots, reports and disks can fail in many ways.
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"caat: WARNING: {what} could not be created ({text})", file=sys.stderr, flush=True)


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the current folder was deleted: cd to another one") from None


def _reader_is_gone() -> bool:
    """Return whether our output is what broke, and not another pipe or a connection."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _raised_by_us(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # "python -m launch.pretrain" names its module __main__; its real name is in the spec.
    scope = frames[-1].f_globals
    name = scope["__spec__"].name if scope.get("__spec__") else scope["__name__"]
    return name.split(".")[0] in OURS
