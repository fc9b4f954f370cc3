"""The empty figure that plots of benchmarks and plans start from."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def empty_figure(height: float, width: float = 7.5) -> Figure:
    """Return a figure of ``width`` x ``height`` inches that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_with_axes(height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes, open at the top and on the right."""
    figure = empty_figure(height)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
