"""The interface of trackers. Used on the first rank only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from caat.training.trackers.samples import Sample


class Tracker:
    """Records the metrics of a run; subclasses override the methods that they support."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Record a flat dictionary of numbers, which always includes ``step`` and ``tokens``."""

    def samples(self, record: Mapping[str, Any], samples: Sequence[Sample]) -> None:
        """Record samples of held-out text that belong to ``record``."""

    def keep(self, kind: str, folder: Path) -> None:
        """Upload the files in ``folder``; ``kind`` names their type, such as checkpoint."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish, with the run's summary (empty if it failed)."""


class Guarded(Tracker):
    """Wraps a tracker: its first error is a warning, later ones are silent, and training continues."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._warned = name, False
        self._tracker = Tracker()
        self._try(lambda: setattr(self, "_tracker", make()))

    def log(self, record: Mapping[str, Any]) -> None:
        self._try(lambda: self._tracker.log(record))

    def samples(self, record: Mapping[str, Any], samples: Sequence[Sample]) -> None:
        self._try(lambda: self._tracker.samples(record, samples))

    def keep(self, kind: str, folder: Path) -> None:
        self._try(lambda: self._tracker.keep(kind, folder))

    def close(self, summary: Mapping[str, Any]) -> None:
        self._try(lambda: self._tracker.close(summary))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        # Trackers are third-party code and may raise anything.
        except Exception as error:
            if not self._warned:
                what = " ".join(str(error).split())
                with suppress(OSError):
                    print(f"caat: WARNING: {self._name} fails ({what}); training continues", file=sys.stderr)
            self._warned = True
