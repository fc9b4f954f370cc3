"""The pictures of docs/ablation.md: loss against bytes, shards and variants."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import (
    BETWEEN,
    SHARDS,
    Run,
    best_of,
    compared,
    full,
    kept,
    label,
    line,
    loss,
    schedule,
    share_of_bytes,
    variants,
)

IMAGES = Path(__file__).parents[1] / "images"
# Colour, label, direction in which its dashes are shifted.
LINES = {
    "scaled": ("#0072b2", "private channels times √N", -1),
    "plain": ("#d55e00", "private channels without a scale", 1),
    "int8": ("#009e73", "without a scale, 8-bit integers on the wire", -1),
}
OTHER = "#cc79a7"
# Differences beyond this are drawn here, or nothing would be seen of the others.
FARTHEST = 0.1
DIFFERENCE = "validation loss minus that of ratio 1\n(nats per token; a dash is one seed)"
Group = dict[int, Run]


def draw() -> None:
    """Draw each variant at its best learning rate, minus ratio 1 with the same seed."""
    longest, *shorter = kept().values()
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    bytes_axes, shards_axes = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_bytes(bytes_axes, longest)
    _draw_shards(shards_axes, longest)
    figure.savefig(IMAGES / "ablation.png", dpi=130)
    if shorter:
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        _draw_variants(figure.subplots(), shorter[0])
        figure.savefig(IMAGES / "ablation-variants.png", dpi=130)


def _draw_bytes(axes: Axes, runs: list[Run]) -> None:
    base = full(runs)
    groups = best_of(variants(run for run in runs if run["parallel.tensor"] == SHARDS).values())
    _draw_lines(axes, [g for g in groups if g != base], base, share_of_bytes, 0.008)
    for group in groups:
        # caat's own 8-bit integers would overlap the simulated ones.
        if (
            line(_of(group))
            or _of(group)["variant"] == BETWEEN
            or (delta := compared(group, base, loss)) is None
        ):
            continue
        x = share_of_bytes(_of(group))
        axes.plot([x] * len(delta.values), delta.values, "_", color=OTHER, ms=9, alpha=0.7)
        axes.plot(x, delta.mean, "D", color=OTHER, mfc="white", label=label(_of(group)))
    axes.plot(1, 0, "o", color="#888888")
    axes.annotate("ratio 1", (1, 0), (-16, 8), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="bytes inside the layers, as a fraction of full synchronisation in bfloat16", ylabel=DIFFERENCE
    )
    axes.legend(frameon=False, fontsize=8)
    axes.margins(x=0.1, y=0.1)


def _draw_shards(axes: Axes, runs: list[Run]) -> None:
    halves = [
        g
        for g in best_of(variants(runs).values())
        if line(_of(g)) in ("plain", "scaled") and schedule(_of(g)) == {0: 0.5}
    ]
    _draw_lines(axes, halves, full(runs), lambda run: run["parallel.tensor"], 0.0)
    axes.set_xscale("log", base=2)
    shards = sorted({run["parallel.tensor"] for group in halves for run in group.values()})
    axes.set_xticks(shards, [str(each) for each in shards])
    axes.set(xlabel="shards, at ratio 0.5")
    axes.margins(x=0.1, y=0.3)


def _draw_lines(axes: Axes, groups: list[Group], base: Group, position, shift: float) -> None:
    """Draw a dash for each seed, shifted sideways by ``shift`` so that lines do not overlap."""
    axes.axhline(0, color="#888888", lw=1)
    for kind, (color, name, side) in LINES.items():
        points = []
        for group in groups:
            delta = compared(group, base, loss)
            if delta is None or line(_of(group)) != kind:
                continue
            points.append((x := position(_of(group)) + side * shift, delta.mean))
            axes.plot([x] * len(delta.values), delta.values, "_", color=color, ms=9, alpha=0.7)
        if points:
            axes.plot(*zip(*sorted(points), strict=True), "o-", color=color, lw=1, label=name)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_variants(axes: Axes, runs: Iterable[Run]) -> None:
    """Draw one row per variant, best first."""
    runs = list(runs)
    base = full(runs)
    deltas = [(compared(group, base, loss), group) for group in best_of(variants(runs).values())]
    rows = [(delta.mean, group) for delta, group in deltas if delta is not None]
    rows.sort(key=lambda row: -row[0])
    beside = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8}
    for number, (delta, group) in enumerate(rows):
        share, place = share_of_bytes(_of(group)), min(delta, FARTHEST)
        axes.plot([0, place], [number, number], color="#dddddd", lw=1, zorder=0)
        axes.plot(
            place, number, "o" if place == delta else ">", color="#888888" if group == base else "#d55e00"
        )
        side = {"xytext": (8, -3), "ha": "left"} if delta >= 0 else {"xytext": (-8, -3), "ha": "right"}
        axes.annotate(f"{delta:+.3f}", (place, number), textcoords="offset points", fontsize=8, **side)
        axes.annotate(f"{share:.3g}", (1.02, number), **beside)
        if label(_of(group)) == "ratio 0.25":
            # Its learning rate is that of its variants, and not that of ratio 1.
            axes.axvline(delta, color="#888888", lw=1, ls=":")
    axes.annotate("bytes", (1.02, len(rows) - 0.4), **beside)
    axes.set_yticks(range(len(rows)), [label(_of(group)) for _, group in rows])
    axes.axvline(0, color="#888888", lw=1)
    axes.set(xlabel="validation loss minus that of ratio 1 (nats per token; one seed; dotted: ratio 0.25)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)


def _of(group: Group) -> Run:
    """Return one of the runs, which differ only in the seed."""
    return group[min(group)]
