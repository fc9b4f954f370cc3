"""A schedule of a collective, as data: who sends which chunk to whom, in which step."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
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

    def order(self) -> Iterator[tuple[Move, int, int]]:
        """Yield each move with what it waits for, as the executor and the simulator do.

        The source must first have applied that many messages of the chunk: those of earlier steps. The target
        applies the message in that place among those of the chunk, counted from 0.
        """
        received: dict[tuple[int, int], list[int]] = defaultdict(list)  # steps, by node and chunk
        for move in self.moves:
            at_target = received[move.target, move.chunk]
            # Steps ascend, so that those before this one are found by bisection.
            yield move, bisect_left(received[move.source, move.chunk], move.step), len(at_target)
            at_target.append(move.step)

    def half(self, collective: str) -> Schedule:
        """Return the reduce-scatter or the all-gather that this all-reduce consists of."""
        sums = collective == "reduce-scatter"
        return Schedule(self.nodes, self.chunks, tuple(move for move in self.moves if move.reduce is sums))

    @property
    def links(self) -> list[Pair]:
        """The pairs of nodes that exchange messages, sorted. A pair need not have a link of its own."""
        return sorted({(move.source, move.target) for move in self.moves})

    @property
    def steps(self) -> int:
        """The number of steps from the first to the last."""
        return self.moves[-1].step - self.moves[0].step + 1 if self.moves else 0
