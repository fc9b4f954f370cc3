"""The rows of a report: one for each variant, aggregated over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, quantiles
from typing import Any

from caat.runs.comparison import baseline, paired_difference, without_codec, without_islands
from caat.runs.reading import Run
from caat.runs.variants import Variant


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


def table(among: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return one row of plain figures for each variant, as shown in the page, the Markdown and the JSON."""
    rows = []
    for variant in among:
        loss = variant.sample(lambda run: run.validation_loss)
        tested = variant.sample(lambda run: run.test_loss)
        bases = baseline(variant, among)
        delta = paired_difference(variant, bases, lambda run: run.validation_loss)
        lost = paired_difference(variant, without_codec(variant, among), lambda run: run.validation_loss)
        apart = paired_difference(variant, without_islands(variant, among), lambda run: run.validation_loss)
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
                "seeds_diverged": list(variant.diverged),
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
                "difference_to_no_islands": apart and apart.mean,
                "difference_to_no_islands_interval": apart and apart.interval,
                "difference_to_no_islands_seeds": len(apart.values) if apart else 0,
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
