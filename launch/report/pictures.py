"""The plots of a report, as SVG elements that take their text colour from the page around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from statistics import mean
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from caat.runs.variants import Variant

# Placeholder for lines and text, replaced by the page's text colour so that dark pages are readable too.
INK = "#010203"
# Readable on white and on black (Okabe and Ito's palette, without its yellow and black).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8172b3", "#7f7f7f")
SHAPES = "osD^v"
# Inches: the width of a plot and the height of a line of text.
WIDTH, LINE = 4.4, 0.18
# Characters in a line of a name, enough for data_sync.codec=topk:0.01.
NAME = 26
MIB = 2**20


def pictures(variants: Sequence[Variant], rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return SVG elements by caption; ``rows`` is the table of the same ``variants``."""
    labels = [_wrapped(variant.label, 44) for variant in variants]
    legend = sum(label.count("\n") + 1 for label in labels)
    one = " Open markers: one seed." if any(len(row["seeds"]) == 1 for row in rows) else ""
    found = {
        f"Loss over trained tokens (lighter: training).{one}": _svg(
            lambda axes: _curves(axes, variants, labels), legend
        )
    }
    if len(rows) > 1:
        names = sum(_wrapped(row["label"], NAME).count("\n") + 2 for row in rows)
        found[f"Validation loss, ± over seeds.{one}"] = _svg(lambda axes: _losses(axes, rows), names, 0.6)
        found["Seconds per step: median, and the middle half of the steps"] = _svg(
            lambda axes: _seconds(axes, rows), names, 0.6
        )
    if len({row["synchronised"] for row in rows}) > 1:
        found[f"Validation loss against communication, ± over seeds.{one}"] = _svg(
            lambda axes: _trade_off(axes, rows, labels), legend
        )
    for field, base in (("difference_to_no_codec", "a codec"), ("difference_to_no_islands", "islands")):
        if some := [row for row in rows if row[field] is not None]:
            names = sum(_wrapped(row["label"], NAME).count("\n") + 2 for row in some)
            found[f"Validation loss minus that without {base}, ± 95 % confidence interval.{one}"] = _svg(
                _differences(rows, some, field), names, 0.6
            )
    # With islands, fewer bytes on one axis may be more on another.
    islands = any(row["island_bytes_per_step"] for row in rows)
    field, where = (
        ("total_bytes_per_step", "all bytes")
        if islands
        else ("data_bytes_per_step", "bytes between replicas")
    )
    between = [row[field] for row in rows]
    if None not in between and len(set(between)) > 1:
        found[f"Validation loss against {where}, ± over seeds; line: the best so far.{one}"] = _svg(
            lambda axes: _front(axes, rows, labels, field), legend
        )
    return found


def _curves(axes: Axes, variants: Sequence[Variant], labels: Sequence[str]) -> None:
    """Plot the training loss as a running mean and the validation loss with its range over the seeds."""
    for number, (variant, label) in enumerate(zip(variants, labels, strict=True)):
        marker = _marker(number, len(variant.seeds))
        tokens, losses = _by_tokens(variant, "loss")
        smooth = _running_mean(losses, max(1, len(losses) // 50))
        axes.plot(tokens, smooth, color=marker["color"], lw=1, alpha=0.35)
        tokens, middle, low, high = _validation(variant)
        if len(variant.seeds) > 1:
            axes.fill_between(tokens, low, high, color=marker["color"], alpha=0.2, lw=0)
        axes.plot(tokens, middle, ls="-", ms=4, lw=1.6, label=label, **marker)
    axes.set(xlabel="trained tokens", ylabel="loss (nats per token)")
    axes.xaxis.set_major_formatter(EngFormatter())
    _legend(axes)


def _losses(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        spread = row["validation_loss_spread"]
        axes.errorbar(
            row["validation_loss"],
            place,
            xerr=spread,
            ms=7,
            capsize=4,
            lw=1,
            **_marker(place, len(row["seeds"])),
        )
    _name(axes, rows)
    axes.set(xlabel="nats per token")


def _differences(
    rows: Sequence[dict[str, Any]], some: Sequence[dict[str, Any]], field: str
) -> Callable[[Axes], None]:
    """Return a plot of the differences of ``some`` of the ``rows``, in the colours of all of them."""

    def draw(axes: Axes) -> None:
        for place, row in enumerate(some):
            marker = _marker(rows.index(row), row[f"{field}_seeds"])
            axes.errorbar(row[field], place, xerr=row[f"{field}_interval"], ms=7, capsize=4, lw=1, **marker)
        axes.axvline(0, color=INK, lw=0.8, ls=":", zorder=0)
        _name(axes, some)
        axes.set(xlabel="difference (nats per token)")

    return draw


def _seconds(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        seconds, (low, high) = row["step_seconds"], row["step_seconds_middle_half"]
        # With few runs, the median over runs may lie outside the middle half of all their steps.
        around = [[max(0.0, seconds - low)], [max(0.0, high - seconds)]]
        axes.barh(place, seconds, xerr=around, color=_colour(place), ecolor=INK, capsize=4, height=0.6)
    _name(axes, rows)
    axes.set(xlabel="seconds per step")


def _trade_off(axes: Axes, rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """Plot loss against bytes, or against the share of channels if all shards were in one process."""
    counted = all(row["bytes_per_step"] for row in rows)
    _scatter(
        axes, rows, labels, [row["bytes_per_step"] / MIB if counted else row["synchronised"] for row in rows]
    )
    axes.margins(x=0.1, y=0.15)
    sent_by = "MiB per step and process, both ways" if counted else "share of channels synchronised"
    axes.set(xlabel=sent_by, ylabel="validation loss (nats per token)")
    _legend(axes)


def _front(axes: Axes, rows: Sequence[dict[str, Any]], labels: Sequence[str], field: str) -> None:
    """Plot loss against the bytes in ``field``, and join those with the least loss for their bytes."""
    points = [(row[field] / MIB, row["validation_loss"]) for row in rows]
    _scatter(axes, rows, labels, [sent for sent, _ in points])
    sent, losses = zip(*front(points), strict=True)
    axes.step(sent, losses, where="post", color=INK, lw=0.8, ls=":", zorder=0)
    # A run in one process sends nothing, which a logarithmic axis cannot show.
    least, most = min(value for value, _ in points if value), max(value for value, _ in points)
    axes.margins(x=0.1, y=0.15)
    if min(sent) == 0:
        axes.set_xscale("symlog", linthresh=least, linscale=0.3)
    elif most < 10 * least:
        # Within a decade, a logarithmic axis would have one or two labels.
        axes.set_xlim(left=0)
    else:
        axes.set_xscale("log")
    where = "over all links" if field == "total_bytes_per_step" else "between replicas"
    axes.set(xlabel=f"MiB per step and process, {where}", ylabel="validation loss (nats per token)")
    _legend(axes)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (bytes, loss) for which no other point has fewer bytes and at most the loss, by bytes."""
    return sorted((sent, loss) for sent, loss in points if loss <= min(y for x, y in points if x <= sent))


def _scatter(
    axes: Axes, rows: Sequence[dict[str, Any]], labels: Sequence[str], places: Sequence[float]
) -> None:
    """Plot the validation loss of each row, with its spread, at its place on the x axis."""
    for number, (row, label, place) in enumerate(zip(rows, labels, places, strict=True)):
        how = _marker(number, len(row["seeds"]))
        axes.errorbar(
            place,
            row["validation_loss"],
            yerr=row["validation_loss_spread"],
            ms=7,
            capsize=4,
            lw=1,
            label=label,
            **how,
        )


def _name(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Label the variants from top to bottom, as in the table."""
    axes.set_yticks(range(len(rows)), [_wrapped(row["label"], NAME) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.12)


def _legend(axes: Axes) -> None:
    """Draw the legend below the axes, where there is room for long names."""
    figure = axes.figure
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, labelcolor=INK, labelspacing=0.3)


def _marker(number: int, seeds: int) -> dict[str, Any]:
    """Return colour and shape of a variant's marker; it is open for a single seed."""
    colour = _colour(number)
    shape = SHAPES[number // len(COLOURS) % len(SHAPES)]
    return {"color": colour, "marker": shape, "mfc": colour if seeds > 1 else "none"}


def _validation(variant: Variant) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return tokens, and mean, minimum and maximum loss, where all seeds have a validation loss."""
    each = [
        {r["tokens"]: r["validation_loss"] for r in run.records if r.get("validation_loss") is not None}
        for run in variant.runs
    ]
    tokens = sorted(set.intersection(*(set(losses) for losses in each)))
    losses = [[measured[place] for measured in each] for place in tokens]
    return tokens, [mean(some) for some in losses], [min(some) for some in losses], [max(s) for s in losses]


def _by_tokens(variant: Variant, field: str) -> tuple[list[int], list[float]]:
    """Return tokens, and the mean of a field over the seeds whose records have it."""
    found: dict[int, list[float]] = {}
    for run in variant.runs:
        for record in run.records:
            if record.get(field) is not None:
                found.setdefault(record["tokens"], []).append(record[field])
    return sorted(found), [mean(found[tokens]) for tokens in sorted(found)]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean over the last ``window`` values, at each value."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _wrapped(label: str, width: int) -> str:
    """Wrap ``label`` to ``width`` characters and escape what matplotlib would read as a formula."""
    return "\n".join(wrap(label, width)).replace("$", r"\$")


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _svg(draw: Callable[[Axes], None], lines: int, axes_height: float = 2.7) -> str:
    """Return what ``draw`` draws as one <svg> element without an XML declaration.

    The height is ``axes_height`` inches plus room for ``lines`` lines of text. The width is that of a phone,
    so that text is not scaled down there.
    """
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
        figure = Figure(figsize=(WIDTH, axes_height + LINE * lines), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, color="#808080")
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        draw(axes)
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").strip()


def numbered(svg: str, number: int) -> str:
    """Make the ids in ``svg`` unique: several plots in one page must not share any."""
    svg = re.sub(r'\bid="', f'id="picture{number}-', svg)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#picture{number}-", svg)
