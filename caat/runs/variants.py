"""Runs that differ only in the seed, and figures over them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

from caat.runs.reading import Run, settings
from conf.deployment import KEEPING
from conf.reading.settings import typed

SEED, RATIO = "seed", "sync.ratio"


@dataclass(frozen=True)
class Sample:
    """A figure over the seeds of a variant."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1 in the denominator); None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> float | None:
        """Half the 95 % confidence interval of the mean, by Student's t; None for a single seed."""
        return (
            None if self.spread is None else t_95(len(self.values) - 1) * self.spread / sqrt(len(self.values))
        )


@dataclass(frozen=True)
class Variant:
    """Finished runs that differ only in the seed. ``settings`` are those in which variants differ."""

    settings: Mapping[str, Any]
    runs: Sequence[Run]
    # The seeds of runs that diverged.
    diverged: Sequence[int] = ()

    @property
    def ratio(self) -> float:
        return self.runs[0].config.sync.last_ratio

    @property
    def full(self) -> bool:
        """Whether all channels were synchronised all the time."""
        return self.runs[0].config.sync.schedule == {0: 1.0}

    @property
    def exact(self) -> bool:
        """Whether messages between replicas went without a codec."""
        sync = self.runs[0].config.data_sync
        return (sync.codec, sync.weights_codec) == ("none", "none")

    @property
    def one_world(self) -> bool:
        """Whether all replicas added up their gradients in each step: there were no islands."""
        config = self.runs[0].config
        return config.islands.resolved(config.parallel.islands) == "none"

    @property
    def seeds(self) -> set[int]:
        return {run.config.seed for run in self.runs}

    @property
    def label(self) -> str:
        # A setting that is None was left at its default.
        named = [
            f"{name}={typed(value)}"
            for name, value in self.settings.items()
            if name != RATIO and value is not None
        ]
        return ", ".join([f"ratio {self.runs[0].config.sync.describe_ratio()}", *named])

    @property
    def others(self) -> tuple[tuple[str, str], ...]:
        """The settings other than the ratio that distinguish the variant."""
        return tuple((name, str(value)) for name, value in self.settings.items() if name != RATIO)

    def by_seed(self, figure: Callable[[Run], float | None]) -> dict[int, float]:
        """Return ``figure`` for each seed that has it; for runs that repeat a seed, the mean."""
        found: dict[int, list[float]] = defaultdict(list)
        for run in self.runs:
            if (value := figure(run)) is not None:
                found[run.config.seed].append(value)
        return {seed: mean(values) for seed, values in found.items()}

    def sample(self, figure: Callable[[Run], float | None]) -> Sample | None:
        """Return the sample of ``figure`` over the seeds that have it; None if none has it."""
        values = self.by_seed(figure)
        return Sample(tuple(values.values())) if values else None


def compared(runs: Iterable[Run]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the settings that all runs share, and those in which they differ, with all their values."""
    values: dict[str, list[Any]] = defaultdict(list)
    for run in runs:
        for name, value in _compared_settings(run).items():
            if value not in values[name]:
                values[name].append(value)
    same = {name: found[0] for name, found in values.items() if len(found) == 1}
    return same, {name: found for name, found in values.items() if len(found) > 1}


def variants(runs: Sequence[Run]) -> list[Variant]:
    """Group the finished runs into variants, sorted by their other settings and then by falling ratio."""
    finished = [run for run in runs if run.finished and not run.diverged]
    differing = [name for name in compared(finished)[1] if name != SEED]
    groups = _by_settings(finished, differing)
    lost = _by_settings([run for run in runs if run.diverged], differing)
    found = []
    for key, members in groups.items():
        all_settings = settings(members[0].config)
        members.sort(key=lambda run: run.config.seed)
        seeds = sorted(run.config.seed for run in lost.get(key, ()))
        found.append(Variant({name: all_settings[name] for name in differing}, members, seeds))
    return sorted(found, key=_sort_key)


def _by_settings(runs: Iterable[Run], names: Sequence[str]) -> dict[tuple, list[Run]]:
    groups: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        all_settings = settings(run.config)
        groups[tuple((name, str(all_settings[name])) for name in names)].append(run)
    return groups


def _sort_key(variant: Variant) -> tuple:
    """Return the key to sort by: the settings, numbers by their size, then the falling ratio."""
    others = ((name, value) for name, value in variant.settings.items() if name != RATIO)
    numbers = tuple((n, v if isinstance(v, int | float) else inf, str(v)) for n, v in others)
    return numbers, -variant.ratio


def t_95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t with ``freedom`` degrees of freedom."""
    return float(student_t.ppf(0.975, freedom))


def _compared_settings(run: Run) -> dict[str, Any]:
    return {k: v for k, v in settings(run.config).items() if not k.startswith(KEEPING)}
