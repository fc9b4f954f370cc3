"""Networks for the tests of schedules."""

from __future__ import annotations

import random
from functools import cache

import networkx as nx

from caat.topology.graph import Topology
from caat.topology.read import topology


@cache
def unit(name: str) -> Topology:
    """The network ``name`` with links of one byte a second, without delay."""
    return topology(name, rate=1.0)


def scattered(nodes: int, switches: int, seed: int) -> Topology:
    """A random connected network whose links have different rates in their two directions."""
    draw = random.Random(seed)
    tree = [(i, draw.randrange(i)) for i in range(1, nodes + switches)]
    more = [tuple(draw.sample(range(nodes + switches), 2)) for _ in range(nodes)]
    graph = nx.DiGraph()
    graph.add_nodes_from(range(nodes + switches))
    for a, b in tree + more:
        for pair in ((a, b), (b, a)):
            graph.add_edge(*pair, rate=float(draw.randint(1, 9)), delay=0.0)
    return Topology(f"random {seed}", graph, nodes)
