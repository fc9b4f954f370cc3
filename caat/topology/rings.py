"""Rings through all nodes: in one direction, in both, or one for each axis of a mesh or torus."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from caat.topology.cycle import ring_order
from caat.topology.forest import Branch, Forest, collect, placed
from caat.topology.graph import Topology
from caat.topology.schedule import Schedule
from conf.checks import require


def ring(topology: Topology) -> Forest:
    """Every chunk goes once around the ring: n - 1 steps."""
    order = ring_order(topology)
    return placed(topology.nodes, topology.nodes, _around(order, 1, 0))


def ring_backward(topology: Topology) -> Forest:
    """The same in the other direction. Its reverse sums in the direction in which :func:`ring` copies."""
    return placed(topology.nodes, topology.nodes, _around(ring_order(topology)[::-1], 1, 0))


def ring_of_ranks(topology: Topology) -> Schedule:
    """The all-reduce of gloo: a ring through the nodes by their numbers, downward, whatever the network."""
    down, up = (
        placed(topology.nodes, topology.nodes, _around(range(topology.nodes)[::by], 1, 0)) for by in (-1, 1)
    )
    return collect(down, "all-reduce", summed=up)


def two_way_ring(topology: Topology) -> Forest:
    """Half of each node's chunk goes around the ring in each direction: n - 1 steps of half the size."""
    order = ring_order(topology)
    branches = _around(order, 2, 0) + _around(order[::-1], 2, 1)
    return placed(topology.nodes, 2 * topology.nodes, branches)


def _around(order: Sequence[int], parts: int, part: int) -> list[Branch]:
    """The chunk of node r that takes this way is number ``parts`` r + ``part``."""
    n = len(order)
    return [
        Branch(step, order[i], order[(i + 1) % n], order[(i + 1 - step) % n] * parts + part)
        for step in range(1, n)
        for i in range(n)
    ]


def ring_2d(topology: Topology) -> Forest:
    """Rings along one axis, then along the next (Ying et al., arXiv 1811.06992), all axes and directions at
    once.

    Each node's chunk has a part for each first axis and each direction, so that all links of a torus carry
    messages. On a mesh, the last of a row sends to the first over all links of the row.
    """
    shape = topology.shape
    require(
        len(shape) >= 2,
        f"topology={topology.name} has no 2-D ring: it needs a mesh or torus with two axes or more",
    )
    parts = 2 * len(shape)
    branches: list[tuple[int, int, Branch]] = []
    for part in range(parts):
        axes = [(part // 2 + i) % len(shape) for i in range(len(shape))]
        for owner in range(topology.nodes):
            branches += _along(shape, axes, 1 if part % 2 == 0 else -1, owner, owner * parts + part)
    # In the order of steps; among those that wait for a link, the one with more of its ring before it.
    branches.sort(key=lambda branch: (branch[0], -branch[1]))
    return placed(topology.nodes, topology.nodes * parts, (branch for _, _, branch in branches))


def _along(
    shape: Sequence[int], axes: Sequence[int], by: int, owner: int, chunk: int
) -> list[tuple[int, int, Branch]]:
    """Return the branches of one chunk, each with its hops from the owner and those left along its axis."""
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    reached, out = [(owner, 0)], []
    for axis in axes:
        for node, hops in list(reached):
            for i in range(1, shape[axis]):
                place = node // strides[axis] % shape[axis]
                after = node + ((place + by) % shape[axis] - place) * strides[axis]
                hops += 1
                out.append((hops, shape[axis] - i, Branch(1, node, after, chunk)))
                reached.append((after, hops))
                node = after
    return out
