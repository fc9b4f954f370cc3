"""An order of the nodes for a ring, if possible along links."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from caat.topology.graph import Topology

# Nodes that the search for a cycle visits before it gives up.
VISITS = 20_000


def ring_order(topology: Topology) -> list[int]:
    """Return all nodes, each beside the next, and the last beside the first, where such a cycle is found.

    Meshes and tori with an even size have one by construction. Other networks are searched, with the node
    that has the fewest free neighbours first (Warnsdorff). Without a cycle, as on a mesh of odd sizes, it is
    a path along links on meshes, and otherwise the order of the nodes' numbers: some messages take several
    hops.
    """
    even = next((axis for axis, size in enumerate(topology.shape) if size % 2 == 0), None)
    if len(topology.shape) > 1 and even is not None:
        return _comb(topology.shape, even)
    return _searched(topology) or _snake(topology.shape or (topology.nodes,))


def _snake(shape: tuple[int, ...]) -> list[int]:
    """Return a path through all nodes of a mesh, along its links; the last axis is fastest."""
    if not shape:
        return [0]
    inner = _snake(shape[1:])
    each = len(inner)
    return [row * each + i for row in range(shape[0]) for i in (inner if row % 2 == 0 else inner[::-1])]


def _comb(shape: tuple[int, ...], even: int) -> list[int]:
    """Return a cycle in a mesh: through the even number of rows in turn without their first node, then back.

    A row has all nodes with one place on the axis ``even``, in an order in which neighbours follow each
    other.
    """
    others = (*shape[:even], *shape[even + 1 :])
    stride, rows = prod(shape[even + 1 :]), []
    for row in range(shape[even]):
        nodes = []
        for number in _snake(others):
            # Put the place on the axis `even` back into the number of a node on the other axes.
            high, low = divmod(number, stride)
            nodes.append((high * shape[even] + row) * stride + low)
        rows.append(nodes)
    teeth = [node for i, row in enumerate(rows) for node in (row[1:] if i % 2 == 0 else row[:0:-1])]
    return teeth + [row[0] for row in rows[::-1]]


def _searched(topology: Topology) -> list[int] | None:
    near = [topology.neighbours(node) for node in range(topology.nodes)]
    path, on, visits = [0], {0}, 0

    def options() -> list[int]:
        free = [v for v in near[path[-1]] if v not in on]
        return sorted(free, key=lambda v: (sum(w not in on for w in near[v]), v), reverse=True)

    stack = [options()]
    while stack and visits < VISITS:
        if len(path) == topology.nodes and path[0] in near[path[-1]]:
            assert all(b in near[a] for a, b in pairwise(path))
            return path
        if stack[-1]:
            visits += 1
            path.append(stack[-1].pop())
            on.add(path[-1])
            stack.append(options())
        else:
            stack.pop()
            on.discard(path.pop())
    return None
