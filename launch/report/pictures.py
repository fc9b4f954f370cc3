"""The pictures of a report, as SVG that stands in a page and takes its colours of text from there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from launch.report.statistics import Variant

# Lines and text: replaced by the page's own colour, so that a dark page is as readable as a light one.
INK = "#010203"
# Readable on white and on black (Okabe and Ito's palette, without its yellow and black).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8172b3", "#7f7f7f")
MIB = 2**20


def pictures(variants: Sequence[Variant], rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SVG elements by caption; ``rows`` are the table of the same ``variants``."""
    found = {"Loss over trained tokens (lighter: training)": _svg(lambda axes: _curves(axes, variants))}
    if len(rows) > 1:
        found["Validation loss by variant"] = _svg(lambda axes: _losses(axes, rows))
        found["Seconds per step"] = _svg(lambda axes: _seconds(axes, rows))
    if len({row["synchronised"] for row in rows}) > 1:
        found["Validation loss against communication"] = _svg(lambda axes: _trade_off(axes, rows))
    return found


def _curves(axes: Axes, variants: Sequence[Variant]) -> None:
    """Training loss as a running mean, validation loss with its range over the seeds."""
    for variant, colour in zip(variants, _colours(len(variants)), strict=True):
        tokens, losses = _by_tokens(variant, "loss")
        axes.plot(tokens, _running_mean(losses, max(1, len(losses) // 50)), color=colour, lw=1, alpha=0.35)
        tokens, _, low, high = _validation(variant)
        axes.fill_between(tokens, low, high, color=colour, alpha=0.2, lw=0)
        tokens, middle, _, _ = _validation(variant)
        axes.plot(tokens, middle, "o-", color=colour, ms=3, lw=1.6, label=_plain(variant.label))
    axes.set(xlabel="trained tokens", ylabel="loss (nats per token)")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _losses(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    places = range(len(rows))
    axes.errorbar(
        places,
        [row["validation_loss"] for row in rows],
        yerr=[row["validation_loss_spread"] or 0.0 for row in rows],
        fmt="none",
        ecolor=INK,
        capsize=4,
        lw=1,
    )
    for place, row, colour in zip(places, rows, _colours(len(rows)), strict=True):
        axes.plot(place, row["validation_loss"], "o", color=colour, ms=7)
    _name(axes, rows)
    axes.set(ylabel="nats per token, ± over seeds")


def _seconds(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    axes.bar(
        range(len(rows)),
        [row["step_seconds"] for row in rows],
        yerr=[row["step_seconds_spread"] or 0.0 for row in rows],
        color=_colours(len(rows)),
        ecolor=INK,
        capsize=4,
        width=0.6,
    )
    _name(axes, rows)
    axes.set(ylabel="seconds per step (median of each run)")


def _trade_off(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Against bytes, or, where all shards were in one process, the share of the channels."""
    counted = all(row["bytes_per_step"] for row in rows)
    for row, colour in zip(rows, _colours(len(rows)), strict=True):
        sent = row["bytes_per_step"] / MIB if counted else row["synchronised"]
        loss, spread = row["validation_loss"], row["validation_loss_spread"] or 0.0
        axes.errorbar(sent, loss, yerr=spread, fmt="o", color=colour, ms=7, capsize=4, lw=1)
        axes.annotate(
            _plain(row["label"]), (sent, loss), (8, 4), textcoords="offset points", fontsize=8, color=INK
        )
    axes.margins(x=0.2, y=0.15)
    sent_by = "MiB per step and process, both directions" if counted else "share of channels synchronised"
    axes.set(xlabel=sent_by, ylabel="validation loss (nats per token)")


def _name(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    turned = len(rows) > 6 or max(len(row["label"]) for row in rows) > 12
    axes.set_xticks(range(len(rows)), [_plain(row["label"]) for row in rows], fontsize=8)
    if turned:
        axes.tick_params(axis="x", rotation=20)
    axes.margins(x=0.12)


def _validation(variant: Variant) -> tuple[list[int], list[float], list[float], list[float]]:
    """Tokens, mean, least and most of the validation losses that all seeds measured there."""
    each = [
        {r["tokens"]: r["validation_loss"] for r in run.records if r.get("validation_loss") is not None}
        for run in variant.runs
    ]
    tokens = sorted(set.intersection(*(set(losses) for losses in each)))
    losses = [[measured[place] for measured in each] for place in tokens]
    return tokens, [mean(some) for some in losses], [min(some) for some in losses], [max(s) for s in losses]


def _by_tokens(variant: Variant, field: str) -> tuple[list[int], list[float]]:
    """Mean over the seeds of a field of the records, where any has it."""
    found: dict[int, list[float]] = {}
    for run in variant.runs:
        for record in run.records:
            if record.get(field) is not None:
                found.setdefault(record["tokens"], []).append(record[field])
    return sorted(found), [mean(found[tokens]) for tokens in sorted(found)]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Over the last ``window`` values."""
    return [mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def _plain(label: str) -> str:
    """Without what matplotlib would read as a formula."""
    return label.replace("$", r"\$")


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _svg(draw: Callable[[Axes], None]) -> str:
    """What ``draw`` draws, as one <svg> element without a declaration."""
    style: Any = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
    }
    style |= {
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.edgecolor": INK,
        "svg.hashsalt": draw.__qualname__,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, color="#808080")
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        draw(axes)
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").strip()


def numbered(svg: str, number: int) -> str:
    """``svg`` with names of its own: several in one page must not share any."""
    svg = re.sub(r'\bid="', f'id="picture{number}-', svg)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#picture{number}-", svg)
