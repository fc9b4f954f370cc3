"""The host's time by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Seconds(defaultdict[str, float]):
    """Seconds since the last ``clear()``, by the name of a phase."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time in this context to ``phase``."""
        start = time.perf_counter()
        yield
        self[phase] += time.perf_counter() - start
