"""How every benchmark ends: a table in the terminal, JSON on disk."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table


class Report:
    """Rows of figures under one heading."""

    def __init__(self, name: str, heading: str) -> None:
        self.name, self.heading = name, heading
        self.rows: list[dict] = []

    def add(self, **figures: str | float) -> None:
        self.rows.append(figures)

    def finish(self, out: str | None) -> None:
        """Print the table, write ``outputs/bench-<name>-<time>.json`` (or ``out``), print its path last."""
        table = Table(title=self.heading, title_justify="left")
        for column in self.rows[0]:
            table.add_column(column, justify="left" if isinstance(self.rows[0][column], str) else "right")
        for row in self.rows:
            table.add_row(*(_text(value) for value in row.values()))
        Console().print(table)
        path = Path(out or f"outputs/bench-{self.name}-{datetime.now():%Y%m%d-%H%M%S}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
        result = {"benchmark": self.name, "heading": self.heading, "machine": machine, "rows": self.rows}
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(path)


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
