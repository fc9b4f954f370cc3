"""Trees that spread chunks from their owners to all nodes, and the collectives that they make.

An all-gather copies every chunk down its tree. A reduce-scatter sums it up the same tree, with all steps in
reverse. An all-reduce does one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from caat.topology.schedule import Move, Schedule


class Branch(NamedTuple):
    """In ``step``, from 1, ``parent`` sends ``chunk`` to ``child``."""

    step: int
    parent: int
    child: int
    chunk: int


@dataclass(frozen=True)
class Forest:
    """A spanning tree for each of ``chunks``; no link is used twice in a step."""

    nodes: int
    chunks: int
    branches: tuple[Branch, ...]

    @property
    def steps(self) -> int:
        return max(branch.step for branch in self.branches)


def placed(nodes: int, chunks: int, branches: Iterable[Branch]) -> Forest:
    """Return the forest with steps in which no link is used twice.

    Each of ``branches``, in the given order, takes the first step from its own on in which its link is free
    and its parent has the chunk. A branch comes after the one that brings the chunk to its parent.
    """
    # By a step in which a link is used: a later one, before which the link is always used.
    later: dict[tuple[int, int, int], int] = {}
    has: dict[tuple[int, int], int] = {}
    out = []
    for earliest, parent, child, chunk in branches:
        first = step = max(earliest, has.get((parent, chunk), 0) + 1)
        while (step, parent, child) in later:
            step = later[step, parent, child]
        later[first, parent, child] = later[step, parent, child] = step + 1
        has[child, chunk] = step
        out.append(Branch(step, parent, child, chunk))
    return Forest(nodes, chunks, tuple(out))


def collect(forest: Forest, collective: str, summed: Forest | None = None) -> Schedule:
    """Return the schedule of an all-gather, reduce-scatter or all-reduce along the trees.

    Chunks are summed along the trees of ``summed``, which has the same roots, and by default is ``forest``.
    """
    summed = summed or forest
    last, moves = summed.steps, []
    if collective != "all-gather":
        moves += [Move(last + 1 - b.step, b.child, b.parent, b.chunk, True) for b in summed.branches]
    if collective != "reduce-scatter":
        before = last if moves else 0
        moves += [Move(before + b.step, b.parent, b.child, b.chunk, False) for b in forest.branches]
    return Schedule.of(forest.nodes, forest.chunks, moves)
