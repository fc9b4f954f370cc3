"""When to save by time: often enough that a crash costs minutes, but with little cost to training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Largest share of training time that all saves may take before a save by time is postponed.
SHARE = 0.03


class Pace:
    """Decides when a save by time is due on this rank: ``minutes`` after the last save began, 0: never.

    The cost of saves is the time for which training was paused, plus the CPU time of their threads.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._started = self._last = time.perf_counter()
        # Each of the two is written by one thread only.
        self._stood = self._worked = 0.0

    @property
    def due(self) -> bool:
        now = time.perf_counter()
        cheap = self._stood + self._worked <= SHARE * (now - self._started)
        return self._seconds > 0 and cheap and now - self._last >= self._seconds

    def begin(self) -> None:
        """Note that a save begins, for any reason."""
        self._last = time.perf_counter()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Context in which training is paused."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stood += time.perf_counter() - started

    def worked(self, seconds: float) -> None:
        """Add the CPU ``seconds`` of a save's thread."""
        self._worked += seconds
