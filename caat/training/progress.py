"""Progress of a run: a live bar in a terminal, plain lines elsewhere and in log.txt."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Do nothing. Rich would exit the process if nobody reads the output any more."""


class _Status(ProgressColumn):
    """The only column that is truncated if the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["status"], no_wrap=True, overflow="ellipsis")


class RunProgress:
    """Shows loss, tokens per second and time left of a run of ``steps`` steps, on the first rank only."""

    def __init__(self, steps: int, done: int, log_file: Path) -> None:
        self._console = _Terminal(stderr=True)
        try:
            self._log = log_file.open("a", encoding="utf-8")
        except OSError as error:
            self._log = open(os.devnull, "a", encoding="utf-8")  # noqa: SIM115
            print(f"caat: WARNING: {log_file} cannot be written ({error.strerror})", file=sys.stderr)
        self._steps, self._first, self._started = steps, done, time.perf_counter()
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(10),
            MofNCompleteColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            _Status(table_column=Column(no_wrap=False)),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, status="")
        self._bar.start()

    def step(self, step: int, status: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step, status=status)

    def line(self, step: int, status: str) -> None:
        """Write a permanent line to log.txt, and to the terminal if it shows no bar."""
        elapsed = time.perf_counter() - self._started
        left = elapsed / max(1, step - self._first) * (self._steps - step)
        text = f"step {step:>{len(str(self._steps))}}/{self._steps}  {status}  left {_clock(left)}"
        self._write(text, terminal=self._bar.disable)

    def say(self, text: str) -> None:
        """Write a message to the log and the terminal."""
        self._write(text, terminal=True)

    def close(self) -> None:
        self._bar.stop()
        with suppress(OSError):
            self._log.close()

    def _write(self, text: str, terminal: bool) -> None:
        # A full disk or a closed terminal must not stop training.
        with suppress(OSError):
            self._log.write(text + "\n")
            self._log.flush()
        if terminal:
            with suppress(OSError):
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def loss_text(value: float | None) -> str:
    """Format a loss, which is None in the metrics if it is not finite."""
    return "not finite" if value is None else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
