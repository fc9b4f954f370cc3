"""Being told to stop: SIGTERM, SIGUSR1 and Ctrl-C end the run after the step that is going on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from caat.parallel.world import launched_by_torchrun

# Slurm sends SIGUSR1 ahead of the time limit if asked to, and SIGTERM on preemption.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INTERRUPTED_STATUS = 130


class StopRequest:
    """Within it, a stop signal does no more than set :attr:`number`; the loop looks at it after each step.

    Ctrl-C ends this process at once if it is the second one, or if there is nothing to save, as long as
    :attr:`training` is not set. That does not wait for the main thread, which may be computing, or waiting
    for another rank. ``first``: this is the rank that speaks for all.
    """

    def __init__(self, first: bool = True) -> None:
        self.number = 0
        self.training = False
        # Told why the run ended.
        self.record: Callable[[str], None] = lambda why: None
        self._first, self._interrupts = first, 0

    def __enter__(self) -> StopRequest:
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
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

    def _listen(self) -> None:
        """Hear of a signal when it comes, not when the main thread has time for it."""
        while byte := os.read(self._pipe[0], 1):
            number = byte[0]
            # torchrun makes SIGTERM of a second Ctrl-C.
            if number == signal.SIGINT or (number == signal.SIGTERM and self._interrupts):
                self._interrupts += 1
                if not self.training:
                    self._end("interrupted before training began: there was nothing to save")
                elif self._interrupts > 1:
                    self._end("stopped at once by a second Ctrl-C")
                else:
                    self._say(f"Ctrl-C: finishing this step, then saving; again: stops at once{_limit()}")

    def _end(self, why: str) -> None:
        if self._first:
            self.record(why)
        self._say(why)
        os._exit(INTERRUPTED_STATUS)

    def _say(self, text: str) -> None:
        if self._first:
            with suppress(OSError):
                print(f"caat: {text}", file=sys.stderr, flush=True)


def _limit() -> str:
    """Of a torchrun that was not told to leave its processes the time to save."""
    if not launched_by_torchrun() or "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in os.environ:
        return ""
    return ". torchrun kills in 30 s: start it with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 for longer steps"


class StoppedBySignal(Exception):
    """The run was told to stop, and did so at the same step on all ranks, its state saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which is saved")
        self.number, self.step = number, step
