"""A report in the terminal."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from launch.report.page import Contents, cells

WIDE = 160


def show(contents: Contents) -> None:
    """Print the table, and what did not finish or cannot be read, a line each."""
    # In a file nothing has to fit.
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    if contents.rows:
        titles, texts = cells(contents.rows)
        table = Table(title=contents.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for row in texts:
            table.add_row(*row)
        console.print(table)
    else:
        console.print("no run has finished yet")
    for run in contents.unfinished:
        done = run.records[-1]["step"] if run.records else 0
        text = f"{run.folder}: {run.status}, {done} of {run.config.train.steps} steps"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    for problem in contents.problems:
        text = f"{problem.folder} cannot be read: {problem.reason}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
