"""The least time of a collective on a network, whatever its schedule."""

from __future__ import annotations

from fractions import Fraction
from math import lcm

import networkx as nx

from caat.topology.graph import Pair, Topology


def least_seconds(topology: Topology, size: float, collective: str = "all-reduce") -> float:
    """Return the seconds below which no schedule moves ``size`` bytes (the whole buffer), without delays.

    A reduce-scatter is an all-gather on the reversed links. An all-reduce takes the sum of both, if every
    node sums an equal share and all shares are summed before they are gathered. On networks whose nodes all
    have equal links that are the limit, as rings and tori, no all-reduce is faster. On others, as meshes, one
    in which both phases overlap can be.
    """
    gather, scatter = collective != "reduce-scatter", collective != "all-gather"
    cuts = (gather and worst_cut(topology)) + (scatter and worst_cut(topology, backward=True))
    return size / topology.nodes * float(cuts)


def worst_cut(topology: Topology, *, backward: bool = False) -> Fraction:
    """Return the seconds that the worst cut needs if each node gathers one byte from every other.

    Over all sets S that lack a node, this is the maximum of |S| / B(S): the nodes in S over the bytes/s that
    leave S (ForestColl, arXiv 2402.06787). Exact, by Dinkelbach's method: as long as some node receives
    less than one byte of each node in that time, the cut that limits it takes longer; then try its time.
    ``backward`` reverses the links.
    """
    rates = {(b, a) if backward else (a, b): Fraction(topology.rate((a, b))) for a, b in topology.graph.edges}
    least = Fraction(0)
    for node in range(topology.nodes):
        arriving = sum((rate for (_, b), rate in rates.items() if b == node), Fraction(0))
        least = max(least, (topology.nodes - 1) / arriving)
    ends = list(range(topology.nodes))
    while ends:
        longer = _longer(topology.nodes, rates, least, ends[0])
        if longer is None:
            ends.pop(0)
        else:
            least = longer
    return least


def _longer(nodes: int, rates: dict[Pair, Fraction], seconds: Fraction, end: int) -> Fraction | None:
    """Return the time of a cut before ``end`` that needs more than ``seconds``, or None if there is none."""
    # Whole capacities: a maximum flow of them is exact.
    scale = lcm(*((seconds * rate).denominator for rate in rates.values()))
    flow = nx.DiGraph()
    flow.add_edges_from((a, b, {"capacity": int(seconds * rate * scale)}) for (a, b), rate in rates.items())
    flow.add_edges_from(("source", node, {"capacity": scale}) for node in range(nodes))
    value, (inside, _) = nx.minimum_cut(flow, "source", end)
    if value == nodes * scale:
        return None
    leaving = sum((rate for (a, b), rate in rates.items() if a in inside and b not in inside), Fraction(0))
    return Fraction(sum(node in inside for node in range(nodes))) / leaving
