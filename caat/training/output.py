"""Output of a run during training: progress, metrics, samples and profiles, on the first rank only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caat.training.profiling import Profiler
from caat.training.progress import RunProgress
from caat.training.record import status_line
from caat.training.trackers import Tracker
from caat.training.trackers.samples import Samples


@dataclass
class Output:
    """The outputs of the first rank; the other ranks have none."""

    trackers: Sequence[Tracker]
    samples: Samples
    progress: RunProgress
    profiler: Profiler

    def record(self, record: dict[str, Any], *, line: bool) -> None:
        """Log the record of a step; ``line``: also print it as a line of text."""
        samples = self.samples.take() if "validation_loss" in record else []
        for tracker in self.trackers:
            tracker.log(record)
            if samples:
                tracker.samples(record, samples)
        status = status_line(record)
        self.progress.step(record["step"], status)
        if line:
            self.progress.line(record["step"], status)

    def scores(self, record: dict[str, Any]) -> None:
        """Log the figures of benchmarks."""
        for tracker in self.trackers:
            tracker.log(record)
