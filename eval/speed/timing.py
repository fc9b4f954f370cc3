"""Timing for noisy machines: the variants take turns, and results are medians with spreads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.progress import track


@dataclass(frozen=True)
class Times:
    """Milliseconds of one variant, by round."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the interquartile range."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / 2

    def ratio_to(self, other: Times) -> float:
        """Return the median over rounds of this variant's time divided by the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.values, other.values, strict=True))

    def above(self, other: Times) -> Times:
        """Return this variant's time minus the other's, by round."""
        return Times([a - b for a, b in zip(self.values, other.values, strict=True)])


def take_turns(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    before: Callable[[], object] = lambda: None,
    show: bool = True,
    *,
    after: Callable[[str], object] = lambda name: None,
) -> dict[str, Times]:
    """Run every variant once per round, so that a slow spell of the machine affects all of them equally.

    ``before`` is called before each run and not timed: a barrier, if several processes measure. So is
    ``after``, with the name of the variant: a check of its result.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in track(range(rounds + warm_up), "measuring", transient=True, disable=not show):
        for name, run in variants.items():
            before()
            started = time.perf_counter()
            run()
            ended = time.perf_counter()
            after(name)
            if number >= warm_up:
                times[name].append((ended - started) * 1e3)
    return {name: Times(values) for name, values in times.items()}
