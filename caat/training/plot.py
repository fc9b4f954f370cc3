"""The plot of a run: loss over trained tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def plot_loss(records: list[dict], baselines: Mapping[str, float], title: str, path: Path) -> None:
    """Plot training and validation loss (nats per token), and ``baselines`` as lines, to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    trained = [r for r in records if r.get("loss") is not None]
    validated = [r for r in records if r.get("validation_loss") is not None]
    axes.plot([r["tokens"] for r in trained], [r["loss"] for r in trained], lw=1, alpha=0.6, label="training")
    axes.plot(
        [r["tokens"] for r in validated],
        [r["validation_loss"] for r in validated],
        "o-",
        ms=3,
        label="validation",
    )
    for (name, value), style in zip(baselines.items(), (":", "--", "-."), strict=False):
        axes.axhline(value, ls=style, color="gray", lw=1, label=f"{name} {value:.2f}")
    axes.set(xlabel="trained tokens", ylabel="loss (nats per token)", title=title)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
