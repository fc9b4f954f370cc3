"""MULTITREE (Huang et al., ISCA 2021): a spanning tree for each node, grown over the links that are free.

Trees grow from their roots, all at once, step by step. In one step each link carries one message, for one
tree. The number of steps depends on how ties are broken. Ours, which gives the steps of the paper's networks:

1. The trees that have the fewest nodes at the start of the step come first, then those with lower roots.
2. They take turns: each adds one node, then the next tree does. A tree that cannot add one is done for the
   step.
3. A tree tries its nodes from the first that joined it to the last, and goes on in the next turn where it is.
4. A node sends to the nearest neighbour outside the tree, of these to the one with the fewest links out (a
   corner of a mesh before its middle), then to the one whose link was named first (on meshes and tori:
   forward and backward along the first axis, then along the next).

Through switches, a neighbour is a node whose route passes through no other node, and all links of the route
must be free. Rates are not looked at: all links count as equal.
"""

from __future__ import annotations

from typing import NamedTuple

from caat.topology.forest import Branch, Forest
from caat.topology.graph import Pair, Topology


class _Near(NamedTuple):
    """The neighbours of a node with the routes to them, the preferred one first; and both as sets."""

    ways: list[tuple[int, tuple[Pair, ...]]]
    nodes: set[int]
    exits: set[Pair]


def multitree(topology: Topology) -> Forest:
    """Return the trees. Chunk r is that of node r, the root of its tree."""
    nodes = topology.nodes
    near = [_near(topology, node) for node in range(nodes)]
    trees = [_Tree(root, near) for root in range(nodes)]
    branches: list[Branch] = []
    step = 0
    while growing := [tree for tree in trees if tree.outside]:
        step += 1
        used: set[Pair] = set()
        turn = sorted(growing, key=lambda tree: len(tree.outside), reverse=True)
        while turn:
            again = []
            for tree in turn:
                added = tree.add(used)
                if added is not None:
                    branches.append(Branch(step, *added, tree.root))
                    if tree.outside:
                        again.append(tree)
            turn = again
        for tree in growing:
            tree.end_step()
    return Forest(nodes, nodes, tuple(branches))


class _Tree:
    """The tree of one root while it grows. ``near`` holds the neighbours of every node."""

    def __init__(self, root: int, near: list[_Near]) -> None:
        self.root, self.near, self.outside = root, near, set(range(len(near))) - {root}
        # Nodes that may have neighbours outside, those added in this step, and where the search stands.
        self.senders, self.added, self.sender, self.place = [root], list[int](), 0, 0

    def add(self, used: set[Pair]) -> tuple[int, int] | None:
        """Add a node over links that are not ``used``, and mark them. Return sender and node, or None."""
        while self.sender < len(self.senders):
            parent = self.senders[self.sender]
            ways, _, exits = self.near[parent]
            # Within a step, a link that is used stays so, and so does a node that is inside: never look back.
            while self.place < len(ways) and not exits <= used:
                child, route = ways[self.place]
                self.place += 1
                if child in self.outside and used.isdisjoint(route):
                    used.update(route)
                    self.outside.remove(child)
                    self.added.append(child)
                    return parent, child
            self.sender, self.place = self.sender + 1, 0
        return None

    def end_step(self) -> None:
        """Let the new nodes send, and drop those whose neighbours are all inside."""
        self.senders = [
            node for node in self.senders + self.added if not self.outside.isdisjoint(self.near[node].nodes)
        ]
        self.added, self.sender, self.place = [], 0, 0


def _near(topology: Topology, node: int) -> _Near:
    found = [(child, topology.route(node, child)) for child in topology.neighbours(node)]
    found.sort(key=lambda each: (len(each[1]), topology.graph.out_degree(each[0])))
    return _Near(found, {child for child, _ in found}, {route[0] for _, route in found})
