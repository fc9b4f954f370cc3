"""The pictures of `caat plan budget=`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from caat.planning.building import cost_of_waiting, wait_seconds, ways
from conf.budget import BudgetConfig
from conf.units import delay_seconds, rate_bytes
from launch.command.figures import figure_with_axes

# Powers of ten around the given rate of a site's link.
AROUND, POINTS = 2.5, 200


def plot_step(result: dict[str, Any], path: Path) -> Path:
    """Draw where the time of a step goes, for each way to train over the sites."""
    figure, axes = figure_with_axes(1.4 + 0.5 * len(result["between_sites"]))
    step = result["step_seconds"]
    share = result["assumptions"]["utilisation"]
    parts = [
        ("arithmetic at the peak", step * share, "#4c72b0"),
        ("the rest inside a site (assumed utilisation)", step * (1 - share), "#bbbbbb"),
    ]
    rows = result["between_sites"]
    for number, row in enumerate(rows):
        left = 0.0
        for name, seconds, colour in [*parts, ("waiting for other sites", row["wait_seconds"], "#dd8452")]:
            axes.barh(number, seconds, left=left, color=colour, label=name if number == 0 else None)
            left += seconds
        axes.text(left, number, f"  {row['waiting']:.0%} waiting", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=f"seconds of a step, at {result['assumptions']['site_link']} a site")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return path


def plot_costs(config: BudgetConfig, result: dict[str, Any], path: Path) -> Path:
    """Draw the cost of waiting against the rate of a site's link, for each way."""
    figure, axes = figure_with_axes(4.2)
    around = rate_bytes(config.site_link) * 8
    rates = np.logspace(np.log10(around) - AROUND, np.log10(around) + AROUND, POINTS)
    sites, step, delay = result["sites"], result["step_seconds"], delay_seconds(config.site_delay)
    for way in ways(config, sites, result["parameters"]):
        waits = [wait_seconds(way, sites, rate=rate, delay=delay) for rate in rates / 8]
        costs = [cost_of_waiting(config, wait, step) / 1e9 for wait in waits]
        axes.plot(rates / 1e12, costs, label=way.name)
    axes.axvline(around / 1e12, color="gray", ls="--", lw=1, label=f"site_link={config.site_link}")
    axes.set_xscale("log")
    axes.set(
        xlabel="rate of a site's link (Tbit/s)",
        ylabel="racks that only wait (billion dollars)",
    )
    size = f"{result['parameters'] / 1e12:.3g} T parameters"
    axes.set_title(f"{result['sites']} sites, {result['gpus']:,} GPUs, {size}", fontsize=9, loc="left")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return path
