"""Traces of chosen steps of a run, and tables of their slowest kernels, on the first rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

# Rows of a table.
SLOWEST = 30


class Profiler:
    """Profiles the steps of ``ranges``, {first: last} with both included, of a run on ``device``.

    For each range, writes a trace for https://ui.perfetto.dev and a table of the operations by their own
    time to ``folder``. ``say`` prints where they are.
    """

    def __init__(
        self, ranges: dict[int, int], folder: Path, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._ranges, self._folder, self._say = ranges, folder, say
        self._on_gpu = device.type == "cuda"
        self._running: profile | None = None
        self._first = self._last = 0
        self._step: record_function | None = None

    def start(self, step: int) -> None:
        """Start a profile if ``step`` is in a range, also in the middle of one after resuming."""
        within = [last for first, last in self._ranges.items() if first <= step <= last]
        if self._running is None and within:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._on_gpu
            self._running = profile(activities=activities)
            self._running.start()
            self._first = step
        if self._running is not None:
            self._step = record_function(f"step {step}")
            self._step.__enter__()

    def stop(self, step: int, *, must: bool = False) -> None:
        """End ``step``; write the profile after the last of its range, or if training ends (``must``)."""
        if self._running is None:
            return
        assert self._step is not None
        self._step.__exit__(None, None, None)
        self._last = step
        if must or not any(first <= step < last for first, last in self._ranges.items()):
            self._running.stop()
            self._write(self._running)
            self._running = None

    def _write(self, found: profile) -> None:
        name = f"steps-{self._first}-{self._last}"
        trace, table = self._folder / f"{name}.json.gz", self._folder / f"{name}.txt"
        time = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        try:
            self._folder.mkdir(exist_ok=True)
            found.export_chrome_trace(str(trace))
            rows = found.key_averages().table(sort_by=time, row_limit=SLOWEST, max_name_column_width=60)
            table.write_text(rows)
        except (OSError, RuntimeError) as error:
            self._say(f"WARNING: the profile of steps {self._first} to {self._last} is not written ({error})")
        else:
            self._say(
                f"profiled steps {self._first} to {self._last}: {table} has the slowest operations; "
                f"open {trace} in https://ui.perfetto.dev"
            )
