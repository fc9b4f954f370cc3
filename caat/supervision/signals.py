"""Stop signals: SIGTERM, SIGUSR1, SIGHUP and Ctrl-C end the run after the current step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from caat.parallel.world import launched_by_torchrun
from caat.supervision.exit_status import INTERRUPTED

# Slurm sends SIGUSR1 before the time limit (with --signal) and SIGTERM on preemption; SIGHUP comes when a
# terminal or its connection closes.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopRequest:
    """Context manager in which a stop signal only sets :attr:`number`, which the loop reads after each step.

    A second Ctrl-C ends this process at once, and so does the first one while :attr:`training` is not set,
    because then there is nothing to save. This does not wait for the main thread, which may be computing
    or waiting for another rank. ``first``: this rank prints and records on behalf of all.
    """

    def __init__(self, first: bool = True) -> None:
        self.number = 0
        self.training = False
        # Set once the run has ended and its status is written: only figures and commands are left.
        self.closing = False
        # Called with the reason for which the run ended.
        self.record: Callable[[str], None] = lambda why: None
        self._first, self._interrupts = first, 0

    def __enter__(self) -> StopRequest:
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1])
        self._thread = threading.Thread(target=self._listen, name="stop signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._pipe[1])
        self._thread.join()
        os.close(self._pipe[0])

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for terminal in self._terminals:
            if not os.isatty(terminal):
                # It is closed: what is printed while the run is saved would fail.
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), terminal)

    def _listen(self) -> None:
        """Handle signals when they arrive, even while the main thread is busy."""
        while byte := os.read(self._pipe[0], 1):
            number = byte[0]
            # torchrun sends SIGTERM at a second Ctrl-C.
            if number == signal.SIGINT or (number == signal.SIGTERM and (self._interrupts or self.closing)):
                self._interrupts += 1
                if not self.training:
                    self._end("interrupted before training began: there was nothing to save")
                elif self._interrupts > 1:
                    self._end("stopped at once by a second Ctrl-C")
                elif self.closing:
                    self._say("the run has ended and is saved: finishing what is left; again to stop at once")
                else:
                    self._say(f"Ctrl-C: finishing this step, then saving; again to stop at once{_limit()}")

    def _end(self, why: str) -> None:
        if self._first and not self.closing:
            self.record(why)
        self._say(why)
        os._exit(INTERRUPTED)

    def _say(self, text: str) -> None:
        if self._first:
            with suppress(OSError):
                print(f"caat: {text}", file=sys.stderr, flush=True)


def _limit() -> str:
    """Return a warning if torchrun's default shutdown timeout may be too short for saving."""
    if not launched_by_torchrun() or "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in os.environ:
        return ""
    return ". torchrun kills after 30 s: start it with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 for longer steps"


class StoppedBySignal(Exception):
    """The run stopped on a signal, at the same step on all ranks, and saved its state."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which is saved")
        self.number, self.step = number, step
