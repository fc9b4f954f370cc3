"""Progress of a tokenisation: a live line on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_SECONDS = 10.0


class TokenizeProgress:
    """Context manager whose :meth:`show` reports to stderr; on success, a last line gives the totals."""

    def __init__(self, documents: int) -> None:
        self._documents = documents
        self._totals = (0, 0, 0)
        self._started = self._shown = perf_counter()
        columns = (BarColumn(16), TextColumn("{task.description}"), TimeRemainingColumn())
        self._live = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
        )
        self._task = self._live.add_task("", total=documents)

    def __enter__(self) -> TokenizeProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if error is None:
            print(f"tokenised {self._line()}", file=sys.stderr)

    def show(self, documents: int, size: int, tokens: int) -> None:
        """Report the totals so far: documents, bytes of text, tokens."""
        self._totals = (documents, size, tokens)
        self._live.update(self._task, completed=documents, description=self._line())
        if self._live.disable and perf_counter() - self._shown > PLAIN_EVERY_SECONDS:
            self._shown = perf_counter()
            left = (self._shown - self._started) * (self._documents / max(documents, 1) - 1)
            print(f"tokenising: {self._line()}, {left:.0f} s left", file=sys.stderr, flush=True)

    def _line(self) -> str:
        documents, size, tokens = self._totals
        rate = 1e-6 / max(perf_counter() - self._started, 1e-9)
        return (
            f"{documents:,} documents, {size / 1e6:,.1f} MB, {tokens / 1e6:,.1f} M tokens "
            f"at {size * rate:.1f} MB/s, {tokens * rate:.2f} M tokens/s"
        )
