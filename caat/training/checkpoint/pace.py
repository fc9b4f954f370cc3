"""When it is time to save again: so that a crash costs minutes, and saving next to nothing of training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# The most of training that all saves together may take before one by time has to wait.
SHARE = 0.03


class Pace:
    """Says when a save by time is due on this rank: ``minutes`` after the last save began, 0: never.

    What saves take is the time that training stood still for them, and the processor time of their threads.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._started = self._last = time.perf_counter()
        # Each is written by one thread only.
        self._stood = self._worked = 0.0

    @property
    def due(self) -> bool:
        now = time.perf_counter()
        cheap = self._stood + self._worked <= SHARE * (now - self._started)
        return self._seconds > 0 and cheap and now - self._last >= self._seconds

    def begin(self) -> None:
        """A save begins, for whatever reason."""
        self._last = time.perf_counter()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Training stands still within it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stood += time.perf_counter() - started

    def worked(self, seconds: float) -> None:
        """The thread of a save has taken so many ``seconds`` of a processor."""
        self._worked += seconds
