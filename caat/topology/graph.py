"""A network as a graph of directed links, and the routes of messages through it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, prod

import networkx as nx

from conf.checks import require

# Largest network. Schedules take seconds at 256 nodes, and grow faster than the square.
MOST = 1024
# From node, to node.
Pair = tuple[int, int]


def check_count(name: str, count: int) -> None:
    """Raise ``ValueError`` if the network or schedule ``name`` has too many nodes and switches."""
    require(count <= MOST, f"{name} has {count:,} nodes and switches: at most {MOST:,}")


@dataclass(frozen=True)
class Topology:
    """Nodes 0 to ``nodes`` - 1, then switches, which forward messages and hold no data.

    Every edge of ``graph`` is one direction of a link, with a ``rate`` in bytes/s and a ``delay`` in seconds.
    ``shape`` holds the sizes of a mesh or torus, whose nodes are numbered with the last axis fastest, and is
    empty for other networks. Raises ``ValueError`` for a network on which no collective can run.
    """

    name: str
    graph: nx.DiGraph
    nodes: int
    shape: tuple[int, ...] = ()
    _routes: dict[Pair, tuple[Pair, ...]] = field(default_factory=dict, repr=False, compare=False)
    _hop: dict[Pair, int] = field(default_factory=dict, repr=False, compare=False)
    _hops: dict[int, dict[int, int]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        name, graph = f"topology={self.name}", self.graph
        require(self.nodes >= 2, f"{name} has {self.nodes} node(s): a collective needs at least 2")
        check_count(name, len(graph))
        for a, b, link in graph.edges(data=True):
            what = f"{name}: the link from {a} to {b}"
            require(
                0 < link["rate"] < inf,
                f"{what} has a rate of {link['rate']:g} bytes/s, which must be above 0",
            )
            require(
                0 <= link["delay"] < inf,
                f"{what} has a delay of {link['delay']:g} s, which must be 0 or more",
            )
        for reached, words in (
            (nx.descendants(graph, 0), "from 0 to"),
            (nx.ancestors(graph, 0), "to 0 from"),
        ):
            lost = set(range(self.nodes)) - reached - {0}
            require(not lost, f"{name} is not connected: no path {words} node {min(lost, default=0)}")

    def rate(self, pair: Pair) -> float:
        """Return the bytes/s of a link."""
        return self.graph.edges[pair]["rate"]

    def delay(self, pair: Pair) -> float:
        """Return the seconds that a byte takes along a link, in addition to its place in the queue."""
        return self.graph.edges[pair]["delay"]

    def route(self, source: int, target: int) -> tuple[Pair, ...]:
        """Return the links of the one path that all messages from ``source`` to ``target`` take.

        It has the fewest hops. On a mesh or torus, it goes along the first axis, then along the next. Among
        several next hops that are left, it takes the number ``target`` modulo their count, in the order of
        their numbers, so that destinations are spread over the spines of a fat tree (D-mod-k).
        """
        if (source, target) not in self._routes:
            at, path = source, []
            while at != target:
                path.append((at, self._next(at, target)))
                at = path[-1][1]
            self._routes[source, target] = tuple(path)
        return self._routes[source, target]

    def _next(self, at: int, target: int) -> int:
        """Return the next hop from ``at``, which does not depend on the way before."""
        if (at, target) not in self._hop:
            hops = self._distances(target)
            near = sorted(v for v in self.graph.successors(at) if hops.get(v) == hops[at] - 1)
            if self.shape:
                first = min(self._axis(at, v) for v in near)
                near = [v for v in near if self._axis(at, v) == first]
            self._hop[at, target] = near[target % len(near)]
        return self._hop[at, target]

    def _axis(self, node: int, neighbour: int) -> int:
        """Return the axis on which two neighbours of a mesh or torus differ."""
        strides = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return next(axis for axis, stride in enumerate(strides) if abs(neighbour - node) >= stride)

    def neighbours(self, node: int) -> list[int]:
        """Return the nodes whose route from ``node`` passes through no other node.

        They are in the order in which the links of the network were named.
        """
        seen, ahead, found = {node}, [node], list[int]()
        while ahead:
            for v in self.graph.successors(ahead.pop(0)):
                if v not in seen:
                    seen.add(v)
                    (found if v < self.nodes else ahead).append(v)
        return [v for v in found if all(b >= self.nodes for _, b in self.route(node, v)[:-1])]

    def _distances(self, target: int) -> dict[int, int]:
        """Return the number of hops to ``target`` from each node that reaches it."""
        if target not in self._hops:
            self._hops[target] = nx.single_source_shortest_path_length(self.graph.reverse(copy=False), target)
        return self._hops[target]
