"""Progress of a tokenisation: a live line on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_SECONDS = 10.0


class TokenizeProgress:
    """Context manager whose :meth:`show` reports to stderr; on success, a last line gives the totals.

    ``documents`` is their number in all blocks, None if it is not known.
    """

    def __init__(self, documents: int | None) -> None:
        self._documents = documents
        self._totals = self._earlier = (0, 0, 0)
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
        """Report the totals of this block so far: documents, bytes of text, tokens."""
        earlier = self._earlier
        self._totals = (earlier[0] + documents, earlier[1] + size, earlier[2] + tokens)
        self._live.update(self._task, completed=self._totals[0], description=self._line())
        if self._live.disable and perf_counter() - self._shown > PLAIN_EVERY_SECONDS:
            self._shown = perf_counter()
            print(f"tokenising: {self._line()}{self._left()}", file=sys.stderr, flush=True)

    def next_block(self) -> None:
        """Add what follows to the totals so far."""
        self._earlier = self._totals

    def _left(self) -> str:
        if self._documents is None:
            return ""
        left = (self._shown - self._started) * (self._documents / max(self._totals[0], 1) - 1)
        return f", {left:.0f} s left"

    def _line(self) -> str:
        documents, size, tokens = self._totals
        rate = 1e-6 / max(perf_counter() - self._started, 1e-9)
        return (
            f"{documents:,} documents, {size / 1e6:,.1f} MB, {tokens / 1e6:,.1f} M tokens "
            f"at {size * rate:.1f} MB/s, {tokens * rate:.2f} M tokens/s"
        )
