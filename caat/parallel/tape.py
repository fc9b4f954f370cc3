"""Keep the results of collectives, so that activation checkpointing does not repeat them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor


class Tape:
    """Records the results of a checkpointed segment's collectives, and replays them in its recomputation."""

    def __init__(self) -> None:
        self._recorded: list[Tensor] | None = None
        self._replayed: Iterator[Tensor] | None = None

    def keep(self, result: Tensor) -> Tensor:
        """Record ``result`` if a checkpointed segment is being recorded, and return it."""
        if self._recorded is not None:
            self._recorded.append(result)
        return result

    def kept(self) -> Tensor | None:
        """Return the recorded result of the next collective during recomputation, otherwise None."""
        return None if self._replayed is None else next(self._replayed)

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """The ``context_fn`` for ``torch.utils.checkpoint``: record in forward, replay in recomputation."""
        results: list[Tensor] = []
        return self._record(results), self._replay(results)

    @contextmanager
    def _record(self, results: list[Tensor]) -> Iterator[None]:
        self._recorded = results
        try:
            yield
        finally:
            self._recorded = None

    @contextmanager
    def _replay(self, results: list[Tensor]) -> Iterator[None]:
        self._replayed = iter(results)
        try:
            yield
        finally:
            self._replayed = None
