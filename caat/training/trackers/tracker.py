"""What every tracker does. Used on the first rank only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from caat.training.trackers.samples import Sample


class Tracker:
    """Keeps what a run measures; a tracker overrides what it has a place for."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Keep one flat record of numbers; ``step`` and ``tokens`` are always among them."""

    def samples(self, record: Mapping[str, Any], samples: Sequence[Sample]) -> None:
        """Keep held-out text as the model saw it at ``record``."""

    def keep(self, kind: str, folder: Path) -> None:
        """Keep the files in ``folder``, a ``kind`` of thing such as a checkpoint."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish, with the run's final figures (empty if it failed)."""


class Guarded(Tracker):
    """A tracker whose failures are a warning, said once: the network and disks fail, and training goes on."""

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
        # A tracker is somebody else's program, and may raise anything.
        except Exception as error:
            if not self._warned:
                what = " ".join(str(error).split())
                with suppress(OSError):
                    print(f"caat: WARNING: {self._name} fails ({what}); training goes on", file=sys.stderr)
            self._warned = True
