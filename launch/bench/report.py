"""How every benchmark ends: a table in the terminal, JSON on disk."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from launch.console import console

Plot = Callable[[list[dict], str, Path], None]
MIB = 2**20


class Column(NamedTuple):
    """How the table shows a figure: under which title, divided by what."""

    title: str
    unit: float = 1.0


class Report:
    """Rows of figures under one heading."""

    def __init__(self, name: str, heading: str, columns: Mapping[str, Column] | None = None) -> None:
        """``columns``: what the table shows, by the name of the figure; default all, under their names."""
        self.name, self.heading, self.columns = name, heading, columns
        self.rows: list[dict] = []

    def add(self, **figures: str | float | None) -> None:
        self.rows.append(figures)

    def finish(self, out: str | None, plot: Plot | None = None) -> None:
        """Print the table, write ``outputs/bench-<name>-<time>.json`` (or ``out``), print its path last.

        ``plot(rows, heading, path)`` draws the picture beside it.
        """
        table = Table(title=self.heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        columns = self.columns or {name: Column(name) for name in self.rows[0]}
        for name, column in columns.items():
            text = isinstance(self.rows[0][name], str)
            table.add_column(column.title, justify="left" if text else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(_text(row[name], column.unit) for name, column in columns.items()))
        console().print(table)
        path = Path(out or f"outputs/bench-{self.name}-{datetime.now():%Y%m%d-%H%M%S}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
        result = {"benchmark": self.name, "heading": self.heading, "machine": machine, "rows": self.rows}
        path.write_text(json.dumps(result, indent=2) + "\n")
        if plot is not None:
            plot(self.rows, self.heading, path.with_suffix(".png"))
            print(path.with_suffix(".png"))
        print(path)


def _text(value: str | float | None, unit: float) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    value /= unit
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
