"""The least time of a collective on a network, whatever its schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from math import lcm

import networkx as nx
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from caat.topology.graph import Pair, Topology

# scipy's maximum flow has 32 bits, for the sum of the capacities of a link's two directions.
MOST_32 = 2**30 - 1
# From a node to the nodes on the other side of a minimum cut before it.
Cut = Callable[[int], set[int]]


def least_seconds(topology: Topology, size: float, collective: str = "all-reduce") -> float:
    """Return the seconds below which no schedule moves ``size`` bytes (the whole buffer), without delays.

    A reduce-scatter is an all-gather on the reversed links. An all-reduce takes the sum of both, if every
    node sums an equal share and all shares are summed before they are gathered. On networks whose nodes all
    have equal links that are the limit, as rings and tori, no all-reduce is faster. On others, as meshes, one
    in which both phases overlap can be.
    """
    gather, scatter = collective != "reduce-scatter", collective != "all-gather"
    if _equal_both_ways(topology):
        return size / topology.nodes * float((gather + scatter) * worst_cut(topology))
    gathered = worst_cut(topology) if gather else 0
    scattered = worst_cut(topology, backward=True) if scatter else 0
    return size / topology.nodes * float(gathered + scattered)


def _equal_both_ways(topology: Topology) -> bool:
    links = topology.graph.edges
    return all((b, a) in links and topology.rate((b, a)) == topology.rate((a, b)) for a, b in links)


def worst_cut(topology: Topology, *, backward: bool = False) -> Fraction:
    """Return the seconds that the worst cut needs if each node gathers one byte from every other.

    Over all sets S that lack a node, this is the maximum of |S| / B(S): the nodes in S over the bytes/s that
    leave S (ForestColl, arXiv 2402.06787). Exact, by Dinkelbach's method: as long as some node receives
    less than one byte of each node in that time, the cut that limits it takes longer; then try its time.
    ``backward`` reverses the links.
    """
    rates = {(b, a) if backward else (a, b): Fraction(topology.rate((a, b))) for a, b in topology.graph.edges}
    arriving: dict[int, Fraction] = defaultdict(Fraction)
    for (_, b), rate in rates.items():
        arriving[b] += rate
    least = (topology.nodes - 1) / min(arriving[node] for node in range(topology.nodes))
    ends = list(range(topology.nodes))
    while ends:
        cut = _cuts(topology.nodes, rates, least)
        while ends and (longer := _time(cut(ends[0]), topology.nodes, rates)) <= least:
            ends.pop(0)
        least = max(least, longer)
    return least


def _time(inside: set[int], nodes: int, rates: dict[Pair, Fraction]) -> Fraction:
    """Return the seconds in which one byte of each node ``inside`` leaves."""
    held = sum(node in inside for node in range(nodes))
    if not held:
        return Fraction(0)
    leaving = (rate for (a, b), rate in rates.items() if a in inside and b not in inside)
    return held / sum(leaving, Fraction(0))


def _cuts(nodes: int, rates: dict[Pair, Fraction], seconds: Fraction) -> Cut:
    """Return the minimum cuts of the network in which one byte of each node may flow for ``seconds``."""
    # Whole capacities: a maximum flow of them is exact.
    scale = lcm(*((seconds * rate).denominator for rate in set(rates.values())))
    capacities = {pair: int(seconds * rate * scale) for pair, rate in rates.items()}
    source = max(max(pair) for pair in rates) + 1
    capacities |= {(source, node): scale for node in range(nodes)}
    return (_cuts_32 if max(capacities.values()) <= MOST_32 else _cuts_any)(capacities, source)


def _cuts_32(capacities: dict[Pair, int], source: int) -> Cut:
    ends, values = np.array(list(capacities)).T, np.array(list(capacities.values()), dtype=np.int32)
    network = csr_array((values, tuple(ends)), shape=(source + 1, source + 1))

    def cut(end: int) -> set[int]:
        left = network - maximum_flow(network, source, end).flow
        left.eliminate_zeros()
        return set(breadth_first_order(left, source, return_predecessors=False).tolist())

    return cut


def _cuts_any(capacities: dict[Pair, int], source: int) -> Cut:
    """For capacities of any size; a hundred times slower."""
    network = nx.DiGraph()
    network.add_edges_from((*pair, {"capacity": capacity}) for pair, capacity in capacities.items())
    return lambda end: nx.minimum_cut(network, source, end)[1][0]
