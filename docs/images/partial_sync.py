"""Draw partial-sync.svg next to this file: python docs/images/partial_sync.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

SHARED = "#4477aa"
PRIVATE = ("#ddaa33", "#bb5566", "#449966", "#9977bb")
GREY, INK = "#8a8a8a", "#222222"
# A shard is a column WIDTH wide; the first half of its stream is shared.
WIDTH, GAP = 3.3, 0.9
HALF = WIDTH / 2
LEFTS = [number * (WIDTH + GAP) for number in range(len(PRIVATE))]
RIGHT = LEFTS[-1] + WIDTH
BAR = 0.66
# Heights of the parts, from the incoming stream to the outgoing one.
STREAM_IN, NORM, COLUMN, LOCAL, ROW, REDUCE, SUM, STREAM_OUT = 8.5, 7.4, 6.35, 5.3, 4.25, 2.35, 1.4, 0.0


def main() -> None:
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "caat"})
    figure, axes = plt.subplots(figsize=(13.5, 8.4))
    for number, (left, colour) in enumerate(zip(LEFTS, PRIVATE, strict=True)):
        draw_shard(axes, number, left, colour)
    draw_all_reduce(axes)
    draw_notes(axes)
    axes.set(xlim=(-3.2, RIGHT + 0.2), ylim=(-0.2, 9.9), aspect="equal")
    axes.axis("off")
    target = Path(__file__).with_name("partial-sync.svg")
    figure.savefig(target, bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


def draw_shard(axes: Axes, number: int, left: float, colour: str) -> None:
    """Draw one shard from top to bottom; nothing in it depends on another shard."""
    middle, shared, private = left + HALF, left + HALF / 2, left + 1.5 * HALF
    axes.text(middle, STREAM_IN + 1.05, f"shard {number}", ha="center", va="center", weight="bold", color=INK)
    draw_stream(axes, left, STREAM_IN, colour)
    boxes = (
        (NORM, "RMSNorm of this stream"),
        (COLUMN, "column-parallel linear"),
        (LOCAL, "own heads / MLP slice"),
        (ROW, "row-parallel linear"),
    )
    above = STREAM_IN
    for height, text in boxes:
        draw_arrow(axes, (middle, above), (middle, height + BAR), INK)
        draw_box(axes, left, height, WIDTH, text, "#f4f4f4", GREY, INK)
        above = height
    draw_arrow(axes, (shared, ROW), (shared, REDUCE + BAR), SHARED)
    draw_arrow(axes, (shared, REDUCE), (shared, SUM + 0.2), SHARED)
    draw_arrow(axes, (private, ROW), (private, SUM + 0.2), colour)
    for centre in (shared, private):
        axes.text(centre, SUM, "+", ha="center", va="center", fontsize=17, color=INK)
        draw_arrow(
            axes, (centre, SUM - 0.2), (centre, STREAM_OUT + BAR), SHARED if centre == shared else colour
        )
    label = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colour, "linewidth": 1.8}
    axes.text(private, ROW - 0.56, "× s", ha="center", va="center", color=INK, bbox=label, zorder=6)
    draw_residual(axes, left)
    draw_stream(axes, left, STREAM_OUT, colour)


def draw_stream(axes: Axes, left: float, bottom: float, colour: str) -> None:
    for start, name, fill in ((left, "shared", SHARED), (left + HALF, "private", colour)):
        axes.add_patch(
            Rectangle((start, bottom), HALF, BAR, facecolor=fill, edgecolor="white", linewidth=1.5)
        )
        axes.text(
            start + HALF / 2, bottom + BAR / 2, name, ha="center", va="center", color="white", weight="bold"
        )


def draw_residual(axes: Axes, left: float) -> None:
    """Draw the residual connection past the layer."""
    outside, height = left - 0.3, STREAM_IN + BAR / 2
    path = [(left, height), (outside, height), (outside, SUM)]
    axes.plot(*zip(*path, strict=True), color=GREY, linewidth=1.3, linestyle=(0, (3, 2)), zorder=1)
    draw_arrow(axes, (outside, SUM), (left + HALF / 2 - 0.18, SUM), GREY, (0, (3, 2)))
    draw_arrow(axes, (left + HALF / 2 + 0.18, SUM), (left + 1.5 * HALF - 0.18, SUM), GREY, (0, (3, 2)))


def draw_all_reduce(axes: Axes) -> None:
    """Draw one bar over all shards, open where private channels pass, since they are not part of the sum."""
    draw_box(axes, LEFTS[0], REDUCE, LEFTS[-1] + HALF - LEFTS[0], "", SHARED, SHARED, "white")
    openings = [left + 1.5 * HALF for left in LEFTS[:-1]]
    for centre in openings:
        axes.add_patch(Rectangle((centre - 0.2, REDUCE - 0.05), 0.4, BAR + 0.1, color="white", zorder=4))
    starts, ends = [LEFTS[0], *openings], [*openings, LEFTS[-1] + HALF]
    words = ("all-reduce", "the shared channels", "are summed", "over all shards")
    for start, end, text in zip(starts, ends, words, strict=True):
        place = ((start + end) / 2, REDUCE + BAR / 2)
        axes.text(*place, text, ha="center", va="center", color="white", weight="bold", zorder=6)


def draw_notes(axes: Axes) -> None:
    notes = (
        (STREAM_IN + BAR / 2, "residual stream:\nshared channels are the\nsame on every shard"),
        ((NORM + ROW + BAR) / 2, "attention or MLP:\nno communication"),
        (REDUCE + BAR / 2, "the only message:\nk of h channels"),
        (STREAM_OUT + BAR / 2, "residual stream\nfor the next layer"),
    )
    for height, text in notes:
        axes.text(-0.62, height, text, ha="right", va="center", color=INK)


def draw_box(
    axes: Axes, left: float, bottom: float, width: float, text: str, fill: str, edge: str, ink: str
) -> None:
    style = "round,pad=0,rounding_size=0.1"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, BAR, boxstyle=style, facecolor=fill, edgecolor=edge, zorder=3)
    )
    axes.text(left + width / 2, bottom + BAR / 2, text, ha="center", va="center", color=ink, zorder=5)


def draw_arrow(axes: Axes, start: tuple, end: tuple, colour: str, dashes: object = "solid") -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=13, shrinkA=0, shrinkB=0,
            color=colour, linewidth=2.2 if dashes == "solid" else 1.3, linestyle=dashes, zorder=5,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
