"""Statistics over runs: one row for each variant, aggregated over its seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, quantiles, stdev
from typing import Any

from scipy.stats import t as student_t

from caat.runs.reading import Run, settings
from conf.deployment import DEPLOYMENT, KEEPING
from conf.reading.settings import typed

SEED, RATIO, CODECS = "seed", "sync.ratio", "data_sync."


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
    def seeds(self) -> set[int]:
        return {run.config.seed for run in self.runs}

    @property
    def label(self) -> str:
        # A setting that is None was left at its default.
        others = [
            f"{name}={typed(value)}"
            for name, value in self.settings.items()
            if name != RATIO and value is not None
        ]
        return ", ".join([f"ratio {self.runs[0].config.sync.describe_ratio()}", *others])

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


def variants(runs: Iterable[Run]) -> list[Variant]:
    """Group the finished runs into variants, sorted by their other settings and then by falling ratio."""
    finished = [run for run in runs if run.finished and run.validation_loss is not None]
    differing = [name for name in compared(finished)[1] if name != SEED]
    groups: dict[tuple, list[Run]] = defaultdict(list)
    for run in finished:
        all_settings = settings(run.config)
        groups[tuple((name, str(all_settings[name])) for name in differing)].append(run)
    found = []
    for members in groups.values():
        all_settings = settings(members[0].config)
        members.sort(key=lambda run: run.config.seed)
        found.append(Variant({name: all_settings[name] for name in differing}, members))
    return sorted(found, key=lambda variant: (_others(variant), -variant.ratio))


def baseline(variant: Variant, among: Sequence[Variant]) -> list[Variant]:
    """Return the variants at ratio 1 that ``variant`` is compared with; none for ratio 1 itself.

    They agree with ``variant`` in all settings that matter at ratio 1 and share a seed with it. Among them,
    those with the fewest differences are chosen: first in what is trained, then in where and how. Variants
    with the default ``sync.wire_dtype`` are preferred to those that round messages.
    """
    full = [v for v in among if v.full and _at_ratio_1(v) == _at_ratio_1(variant)]
    full = [v for v in full if v.runs[0].config.sync.wire_dtype == "auto"] or full
    shared = [v for v in full if v.seeds & variant.seeds]
    if variant in full or not shared:
        return []
    nearest = min(_distance(variant, v) for v in shared)
    return [v for v in shared if _distance(variant, v) == nearest]


def without_codec(variant: Variant, among: Sequence[Variant]) -> list[Variant]:
    """Return the variants without codecs that ``variant`` is compared with; none if it has no codec itself.

    They agree with ``variant`` in the ratio and all other settings of what is trained, and share a seed with
    it. Among them, those with the fewest differences in where and how they were trained are chosen.
    """

    def trained(v: Variant) -> tuple:
        return v.ratio, *(pair for pair in _trained(v) if not pair[0].startswith(CODECS))

    found = [v for v in among if v.exact and trained(v) == trained(variant) and v.seeds & variant.seeds]
    if variant.exact or not found:
        return []
    nearest = min(_distance(variant, v) for v in found)
    return [v for v in found if _distance(variant, v) == nearest]


def paired_difference(
    variant: Variant, bases: Sequence[Variant], figure: Callable[[Run], float | None]
) -> Sample | None:
    """Return ``figure`` minus that of ``bases`` (the mean, if there are several) for each common seed.

    None if there is no common seed.
    """
    base: dict[int, list[float]] = defaultdict(list)
    for other in bases:
        for seed, value in other.by_seed(figure).items():
            base[seed].append(value)
    own = variant.by_seed(figure).items()
    differences = [value - mean(base[seed]) for seed, value in own if seed in base]
    return Sample(tuple(differences)) if differences else None


def scores(among: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return one row for each metric of each benchmark, with figures in the order of the variants."""
    names = sorted({name for variant in among for run in variant.runs for name in run.scores})
    bases = [baseline(variant, among) for variant in among]
    rows = []
    for task, metric in names:

        def figure(run: Run, name: tuple[str, str] = (task, metric)) -> float | None:
            return run.scores.get(name)

        figures = []
        for variant, base in zip(among, bases, strict=True):
            score, delta = variant.sample(figure), paired_difference(variant, base, figure)
            figures.append(
                score
                and {
                    "label": variant.label,
                    "mean": score.mean,
                    "spread": score.spread,
                    "difference_to_ratio_1": delta and delta.mean,
                    "difference_to_ratio_1_interval": delta and delta.interval,
                }
            )
        rows.append({"task": task, "metric": metric, "figures": figures})
    return rows


def t_95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t with ``freedom`` degrees of freedom."""
    return float(student_t.ppf(0.975, freedom))


def table(among: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return one row of plain figures for each variant, as shown in the page, the Markdown and the JSON."""
    rows = []
    for variant in among:
        loss = variant.sample(lambda run: run.validation_loss)
        tested = variant.sample(lambda run: run.test_loss)
        bases = baseline(variant, among)
        delta = paired_difference(variant, bases, lambda run: run.validation_loss)
        lost = paired_difference(variant, without_codec(variant, among), lambda run: run.validation_loss)
        sent = variant.sample(lambda run: run.bytes_per_step)
        data_sent = variant.sample(lambda run: run.data_bytes_per_step)
        data_calls = variant.sample(lambda run: run.data_calls_per_step)
        island_sent = variant.sample(lambda run: run.island_bytes_per_step)
        total = variant.sample(lambda run: run.total_bytes_per_step)
        seconds = variant.sample(lambda run: run.median("step_seconds"))
        speed = variant.sample(lambda run: run.median("tokens_per_second"))
        mfu = variant.sample(lambda run: run.median("mfu"))
        assert loss is not None
        rows.append(
            {
                "label": variant.label,
                "ratio": variant.ratio,
                "settings": dict(variant.settings),
                "seeds": sorted(variant.seeds),
                "validation_loss": loss.mean,
                "validation_loss_spread": loss.spread,
                "test_loss": tested and tested.mean,
                "test_loss_spread": tested and tested.spread,
                "validation_loss_by_source": _by_source(variant, "validation_loss"),
                "epochs_by_source": _by_source(variant, "epochs"),
                "difference_to_ratio_1": delta and delta.mean,
                "difference_to_ratio_1_interval": delta and delta.interval,
                "difference_to_ratio_1_seeds": len(delta.values) if delta else 0,
                "compared_with": [base.label for base in bases],
                "difference_to_no_codec": lost and lost.mean,
                "difference_to_no_codec_interval": lost and lost.interval,
                "difference_to_no_codec_seeds": len(lost.values) if lost else 0,
                "synchronised": mean(run.synchronised for run in variant.runs),
                "bytes_per_step": sent and sent.mean,
                "data_bytes_per_step": data_sent and data_sent.mean,
                "data_calls_per_step": data_calls and data_calls.mean,
                "island_bytes_per_step": island_sent and island_sent.mean,
                "total_bytes_per_step": total and total.mean,
                "step_seconds": seconds and seconds.mean,
                "step_seconds_spread": seconds and seconds.spread,
                "step_seconds_middle_half": _middle_half(variant, "step_seconds"),
                "tokens_per_second": speed and speed.mean,
                "mfu": mfu and mfu.mean,
                "trained_tokens": max(run.tokens for run in variant.runs),
                "runs": [str(run.folder) for run in variant.runs],
            }
        )
    return rows


def _by_source(variant: Variant, figure: str) -> dict[str, float | None]:
    """Return the mean of a figure of each source of the mixture over the seeds; none for one text."""
    found = [run.by_source(figure) for run in variant.runs]
    means: dict[str, float | None] = {}
    for name in found[0]:
        values = [each.get(name) for each in found]
        known = [value for value in values if value is not None]
        means[name] = mean(known) if len(known) == len(values) else None
    return means


def _middle_half(variant: Variant, field: str) -> tuple[float, float] | None:
    """Return the first and third quartile of a field over the steps of all runs; None if not measured."""
    values = [value for run in variant.runs for value in run.steady(field)]
    if not values:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, high


def _compared_settings(run: Run) -> dict[str, Any]:
    return {k: v for k, v in settings(run.config).items() if not k.startswith(KEEPING)}


def _others(variant: Variant) -> tuple:
    """Return the settings other than the ratio that distinguish a variant."""
    return tuple((name, str(value)) for name, value in variant.settings.items() if name != RATIO)


def _trained(variant: Variant) -> tuple:
    return tuple(pair for pair in _others(variant) if not pair[0].startswith(DEPLOYMENT))


def _at_ratio_1(variant: Variant) -> tuple:
    """Return the settings that matter at ratio 1, where the number of shards does not."""
    return tuple(pair for pair in _trained(variant) if not pair[0].startswith(("sync.", "parallel.")))


def _distance(one: Variant, other: Variant) -> tuple[int, int]:
    """Count the differing settings, ratio aside: first those of what is trained, then of where and how."""
    trained = len(set(_trained(one)) - set(_trained(other)))
    return trained, len(set(_others(one)) - set(_others(other))) - trained
