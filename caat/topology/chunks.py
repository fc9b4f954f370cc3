"""Where a schedule's chunks lie in a buffer, which node owns each, and what each node sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

from caat.topology.schedule import Schedule

# Start and end of each chunk in a buffer of numbers.
Ranges = Sequence[tuple[int, int]]


def equal_chunks(n: int, chunks: int) -> Ranges:
    """Cut ``n`` numbers into ``chunks`` that differ by at most one number."""
    edges = [n * i // chunks for i in range(chunks + 1)]
    return list(pairwise(edges))


def owners(schedule: Schedule) -> list[int]:
    """Return the node of each chunk that ends a reduce-scatter with its sum, or begins an all-gather with it.

    It sends no partial sum of the chunk and receives no copy of it.
    """
    others: list[set[int]] = [set() for _ in range(schedule.chunks)]
    for move in schedule.moves:
        others[move.chunk].add(move.source if move.reduce else move.target)
    return [next(node for node in range(schedule.nodes) if node not in passed) for passed in others]


def owned_chunks(schedule: Schedule, sizes: Sequence[int]) -> Ranges:
    """Lay the chunks out in a buffer of one slice for each node, of ``sizes`` numbers, one after the other.

    The chunks that a node owns share its slice equally. Every node must own a chunk.
    """
    of_chunk, starts = owners(schedule), [0, *accumulate(sizes)]
    found = [(0, 0)] * schedule.chunks
    for node, size in enumerate(sizes):
        own = [chunk for chunk, owner in enumerate(of_chunk) if owner == node]
        assert own, f"node {node} owns no chunk"
        for chunk, (start, end) in zip(own, equal_chunks(size, len(own)), strict=True):
            found[chunk] = starts[node] + start, starts[node] + end
    return found


def sent_numbers(schedule: Schedule, ranges: Ranges) -> Counter[int]:
    """Return how many numbers each node sends, on each link of its own once for each chunk."""
    sent: Counter[int] = Counter()
    for move in schedule.moves:
        start, end = ranges[move.chunk]
        sent[move.source] += end - start
    return sent
