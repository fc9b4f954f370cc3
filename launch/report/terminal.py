"""A report in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from launch.console import console
from launch.report.page import Contents, cells


def show(contents: Contents) -> None:
    """Print the table, and what did not finish or cannot be read, a line each."""
    out = console()
    if contents.rows:
        titles, texts = cells(contents.rows)
        table = Table(title=contents.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for row in texts:
            table.add_row(*row)
        out.print(table)
    else:
        out.print("no run has finished yet")
    for run in contents.unfinished:
        done = run.records[-1]["step"] if run.records else 0
        text = f"{run.folder}: {run.status}, {done} of {run.config.train.steps} steps"
        out.print(text, highlight=False, markup=False, soft_wrap=True)
    for problem in contents.problems:
        text = f"{problem.folder} cannot be read: {problem.reason}"
        out.print(text, highlight=False, markup=False, soft_wrap=True)
