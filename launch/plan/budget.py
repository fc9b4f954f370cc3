"""`caat plan budget=`: designs a datacenter for a sum of money, and prints every assumption."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from caat.planning.building import design
from conf.budget import BudgetConfig
from conf.field import descriptions
from conf.reading.verb import load_verb
from launch.command.console import console
from launch.command.results import result_file, write_json
from launch.plan.pictures import plot_costs, plot_step


def main(argv: list[str]) -> None:
    """Print the building and what it could train; write JSON and two pictures."""
    config = load_verb(BudgetConfig, argv)
    out = result_file(config.out or f"outputs/budget-{datetime.now():%Y%m%d-%H%M%S}.json")
    result = design(config)
    write_json(out, result)
    show(config, result)
    if result["between_sites"]:
        print(plot_step(result, _beside(out, "step")))
        print(plot_costs(config, result, _beside(out, "cost")))
    print(out)


def show(config: BudgetConfig, result: dict[str, Any]) -> None:
    """Print the assumptions, the building, the models, and the ways to train over the sites."""
    out = console()
    out.print(_assumptions(config, result))
    low, high = result["total_megawatts"]
    sites = result["sites"]
    print(
        f"{result['racks']:,} racks, {result['gpus']:,} GPUs, {result['it_megawatts']:,.0f} MW of IT, "
        f"{low:,.0f} to {high:,.0f} MW in all: {sites} site{'s' if sites > 1 else ''} of at most "
        f"{config.site_megawatts:,.0f} MW"
    )
    print(f"Law: {result['law_source']}")
    if result["extrapolates"] > 1:
        print(
            f"The law was fitted to models up to 16 B parameters: {_short(result['parameters'])} is an "
            f"extrapolation of {result['extrapolates']:,.0f} times"
        )
    out.print(_models(config, result))
    if sites > 1:
        out.print(_ways(config, result))
    print(
        f"Days follow from the assumed utilisation of {config.utilisation:g} of {config.hardware.peak:,.0f} "
        "TFLOP/s, without failures: they are no forecast"
    )


def _assumptions(config: BudgetConfig, result: dict[str, Any]) -> Table:
    table = Table(title="Assumptions, all of them settings", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("setting", "value", ""):
        table.add_column(column)
    described = descriptions(BudgetConfig)
    for field in fields(config):
        value = result["assumptions"][field.name]
        if field.name not in ("out", "parameters"):
            shown = f"{value:,g}" if isinstance(value, float) else str(value)
            table.add_row(field.name, shown, described[field.name])
    return table


def _models(config: BudgetConfig, result: dict[str, Any]) -> Table:
    table = _table("What it could train", "parameters", "tokens", "FLOPs", "days", "step s")
    for row in [result, *result["models"]]:
        figures = _short(row["parameters"]), _short(row["tokens"]), f"{row['flops']:.2e}"
        table.add_row(*figures, f"{row['days']:,.0f}", f"{row['step_seconds']:.3g}")
    return table


def _ways(config: BudgetConfig, result: dict[str, Any]) -> Table:
    title = (
        f"Training {_short(result['parameters'])} parameters over {result['sites']} sites; link of a site "
        f"{config.site_link}, {config.site_delay}"
    )
    needed = f"link for {100 * config.waiting:g}% waiting"
    table = _table(title, "between sites", "sent TB a step", "waits s a step", "waiting", "M dollars", needed)
    for row in result["between_sites"]:
        rate = row["link_needed_bits_per_second"]
        table.add_row(
            row["name"],
            f"{row['bytes_per_step'] / 1e12:,.3g}",
            f"{row['wait_seconds']:,.3g}",
            f"{row['waiting']:.1%}",
            f"{row['cost_of_waiting'] / 1e6:,.0f}",
            f"{rate / 1e12:,.3g} Tbit/s" if rate else "none: the delay alone is more",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _short(number: float) -> str:
    """Return a number of parameters or tokens such as 14.6 T."""
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "B")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e6:.3g} M"


def _beside(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}-{name}.png")
