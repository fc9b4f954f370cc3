"""A report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.report.page import Contents, cells, score_cells

# Let the terminal wrap long rows, so that no figure is cut off.
UNLIMITED = 10_000


def show(contents: Contents) -> None:
    """Print the tables, and one line for each run that did not finish or cannot be read."""
    out = Console(width=UNLIMITED)
    if contents.rows:
        out.print(_table(contents.title, *cells(contents.rows)))
        if contents.scores:
            out.print(_table("benchmarks", *score_cells(contents)))
    else:
        out.print("no run has finished yet")
    for run in contents.unfinished:
        done = run.records[-1]["step"] if run.records else 0
        text = f"{run.folder}: {run.status}, {done} of {run.config.train.steps} steps"
        out.print(text, highlight=False, markup=False, soft_wrap=True)
    for problem in contents.problems:
        text = f"{problem.folder} cannot be read: {problem.reason}"
        out.print(text, highlight=False, markup=False, soft_wrap=True)


def _table(title: str, titles: Sequence[str], texts: Sequence[Sequence[str]]) -> Table:
    # Text() keeps rich from reading brackets as a style.
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(titles):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in texts:
        table.add_row(*map(Text, row))
    return table
