"""Draws docs/images/partial-sync.svg: python docs/images/partial_sync.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

SHARED = "#4477aa"
PRIVATE = ("#ccbb44", "#ee6677", "#228833", "#aa3377")
LOCAL = "#eeeeee"
INK = "#222222"
# Every shard is a column of this width; its stream is a bar, shared channels on the left.
WIDTH, GAP, SPLIT = 2.8, 0.75, 1.4


def main() -> None:
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 11, "svg.hashsalt": "caat"})
    figure, axes = plt.subplots(figsize=(13.2, 8.0))
    lefts = [i * (WIDTH + GAP) for i in range(len(PRIVATE))]
    for number, (left, colour) in enumerate(zip(lefts, PRIVATE, strict=True)):
        shard(axes, number, left, colour)
    all_reduce(axes, lefts)
    side_notes(axes, lefts)
    axes.set_xlim(-2.75, lefts[-1] + WIDTH + 0.75)
    axes.set_ylim(-0.75, 8.5)
    axes.set_aspect("equal")
    axes.axis("off")
    target = Path(__file__).with_name("partial-sync.svg")
    figure.savefig(target, bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


def shard(axes, number: int, left: float, colour: str) -> None:
    """One shard, top to bottom: stream, local layer, partial product, what is added to the stream."""
    middle = left + WIDTH / 2
    axes.text(middle, 8.15, f"shard {number}", ha="center", va="center", weight="bold", color=INK)
    stream(axes, left, 7.1, colour, "shared", "private")
    arrow(axes, (middle, 7.1), (middle, 6.6))
    box(axes, left, 5.9, "RMSNorm, its own stream")
    arrow(axes, (middle, 5.9), (middle, 5.5))
    box(axes, left, 4.8, "column-parallel linear")
    arrow(axes, (middle, 4.8), (middle, 4.4))
    box(axes, left, 3.7, "own heads, or own MLP part")
    arrow(axes, (middle, 3.7), (middle, 3.3))
    box(axes, left, 2.6, "row-parallel linear")
    arrow(axes, (left + SPLIT / 2, 2.6), (left + SPLIT / 2, 1.95), SHARED)
    private = left + (SPLIT + WIDTH) / 2
    arrow(axes, (private, 2.6), (private, 0.75), colour)
    axes.text(
        private, 1.62, "× √N", ha="center", va="center", color=INK, weight="bold",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour, "linewidth": 1.6},
    )  # fmt: skip
    arrow(axes, (left + SPLIT / 2, 1.3), (left + SPLIT / 2, 0.75), SHARED)
    stream(axes, left, 0.0, colour, "shared", "private")
    # The residual connection, from the stream above to the one below.
    way = [(left, 7.45), (left - 0.22, 7.45), (left - 0.22, 0.38), (left - 0.02, 0.38)]
    axes.plot(*zip(*way[:3], strict=True), color="#888888", linewidth=1.3, zorder=0)
    arrow(axes, way[2], way[3], "#888888")
    axes.text(left - 0.22, 4.2, "+", ha="center", va="center", color="#888888", fontsize=1)
