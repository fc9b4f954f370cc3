"""The result of a benchmark: a table in the terminal, JSON on disk."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from caat.machine import available_cores, processor
from conf.checks import require
from launch.command.console import console
from launch.command.results import result_file, write_json

Plot = Callable[[list[dict], str, Path], None]
MIB = 2**20


class Column(NamedTuple):
    """A column of the table: its title, and the unit that figures are divided by."""

    title: str
    unit: float = 1.0


class Report:
    """Rows of figures. Create it before measuring: it checks that the result can be written."""

    def __init__(self, name: str, out: str | None, columns: Mapping[str, Column] | None = None) -> None:
        """``columns``: columns of the table by name of the figure; default all, with their names as titles.

        ``out``: the JSON file, by default ``outputs/bench-<name>-<time>.json``. Raises ``ValueError`` if it
        cannot be written.
        """
        self.name, self.columns = name, columns
        self.out = result_file(out or f"outputs/bench-{name}-{datetime.now():%Y%m%d-%H%M%S}.json")
        # The plot has the same name with this ending.
        require(
            self.out.suffix != ".png",
            f"out={self.out} is the path of the JSON: give a name that ends in .json",
        )
        self.rows: list[dict] = []

    def add(self, **figures: str | float | None) -> None:
        self.rows.append(figures)

    def finish(self, heading: str, plot: Plot | None = None, notes: Sequence[str] = ()) -> None:
        """Write the JSON, print the table under ``heading`` and the ``notes``, and print the path last.

        ``plot(rows, heading, path)`` writes a plot next to the JSON file.
        """
        table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        columns = self.columns or {name: Column(name) for name in self.rows[0]}
        for name, column in columns.items():
            text = isinstance(self.rows[0][name], str)
            table.add_column(column.title, justify="left" if text else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(_text(row[name], column.unit) for name, column in columns.items()))
        machine = {"processor": processor(), "cores": available_cores(), "python": platform.python_version()}
        result = {"benchmark": self.name, "heading": heading, "machine": machine, "rows": self.rows}
        write_json(self.out, result)
        console().print(table)
        for note in notes:
            print(note)
        if plot is not None:
            plot(self.rows, heading, self.out.with_suffix(".png"))
            print(self.out.with_suffix(".png"))
        print(self.out)


def _text(value: str | float | None, unit: float) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    value /= unit
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
