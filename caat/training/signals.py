"""Being told to stop: SIGTERM and SIGUSR1 end the run after the step that is going on."""

from __future__ import annotations

import signal
from types import FrameType

# Slurm sends SIGUSR1 ahead of the time limit if asked to, and SIGTERM on preemption.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Within it, a stop signal does no more than set :attr:`number`; the loop looks at it after each step."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number


class StoppedBySignal(Exception):
    """The run was told to stop, and did so at the same step on all ranks, its state saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which is saved")
        self.number, self.step = number, step
