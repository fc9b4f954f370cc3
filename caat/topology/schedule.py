"""A schedule of a collective, as data: who sends which chunk to whom, in which step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from caat.topology.graph import Pair

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce")


class Move(NamedTuple):
    """In ``step``, ``source`` sends ``chunk`` to ``target``, which adds it to its own or keeps the copy."""

    step: int
    source: int
    target: int
    chunk: int
    reduce: bool


@dataclass(frozen=True)
class Schedule:
    """Moves in the order of their steps, and within a step by source, target and chunk.

    The buffer is cut into ``chunks`` of one size. A node sends in a step what it held after the steps before.
    Steps order the messages of a link and the additions of a node; they are no barriers.
    """

    nodes: int
    chunks: int
    moves: tuple[Move, ...]

    @classmethod
    def of(cls, nodes: int, chunks: int, moves: Iterable[Move]) -> Schedule:
        return cls(nodes, chunks, tuple(sorted(moves)))

    @property
    def links(self) -> list[Pair]:
        """The pairs of nodes that exchange messages, sorted. A pair need not have a link of its own."""
        return sorted({(move.source, move.target) for move in self.moves})

    @property
    def steps(self) -> int:
        """The number of steps from the first to the last."""
        return self.moves[-1].step - self.moves[0].step + 1 if self.moves else 0
