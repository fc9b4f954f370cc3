"""Times that can be trusted on a noisy machine: the variants take turns, medians and spreads are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.progress import track


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median, and half the distance between the quartiles."""

    median_ms: float
    spread_ms: float
    # Median over the rounds of this variant's time by the first variant's in the same round.
    ratio: float


def take_turns(
    variants: Mapping[str, Callable[[], None]], rounds: int, warm_up: int = 2
) -> dict[str, Timing]:
    """Run every variant once a round, so that a slow spell of the machine hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in track(range(rounds + warm_up), "measuring", transient=True):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if number >= warm_up:
                times[name].append((time.perf_counter() - started) * 1e3)
    first = next(iter(times.values()))
    return {
        name: Timing(
            statistics.median(values),
            _half_quartile_distance(values),
            statistics.median(a / b for a, b in zip(values, first, strict=True)),
        )
        for name, values in times.items()
    }


def _half_quartile_distance(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return (high - low) / 2
