"""The bound: known optima, and all cuts of small networks by brute force."""

from __future__ import annotations

import random
import time
from fractions import Fraction
from itertools import combinations

import pytest

from caat.topology.bound import least_seconds, worst_cut
from tests.topology.networks import scattered, unit


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("mesh:2x2", 1.5),
        ("torus:4x4", 3.75),
        ("mesh:4x4", 7.5),
        ("torus:6x6", 8.75),
        ("full:8", 1),
        ("ring:8", 3.5),
    ],
)
def test_optima_of_known_networks(name, chunks):
    """In the time of a chunk, 1 / n of the data, on one link."""
    assert worst_cut(unit(name)) == chunks
    nodes = unit(name).nodes
    for collective, times in (("all-gather", 1), ("reduce-scatter", 1), ("all-reduce", 2)):
        assert least_seconds(unit(name), 10.0 * nodes, collective) == pytest.approx(10 * times * chunks)


def test_networks_of_256_nodes_take_a_second():
    started = time.perf_counter()
    assert worst_cut(unit("torus:16x16")) == Fraction(255, 4)
    assert worst_cut(unit("mesh:16x16")) == Fraction(255, 2)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_it_is_the_worst_of_all_cuts(seed, backward, whole):
    """Rates that are not whole have 53 bits, too many for scipy."""
    net = scattered(nodes=3 + seed % 4, switches=seed % 3, seed=seed)
    if not whole:
        draw = random.Random(seed)
        for pair in net.graph.edges:
            net.graph.edges[pair]["rate"] *= draw.uniform(0.9, 1.1)
    everyone, nodes = range(len(net.graph)), set(range(net.nodes))
    worst = Fraction(0)
    for count in range(1, len(net.graph)):
        for inside in combinations(everyone, count):
            if nodes <= set(inside):
                continue
            edges = [(b, a) if backward else (a, b) for a, b in net.graph.edges]
            leaving = sum(
                Fraction(net.rate((b, a) if backward else (a, b)))
                for a, b in edges
                if a in inside and b not in inside
            )
            if held := len(nodes & set(inside)):
                worst = max(worst, held / leaving)
    assert worst_cut(net, backward=backward) == worst


def test_an_oversubscribed_fat_tree_is_limited_by_its_spine():
    # A leaf receives 8 chunks from its one spine, and a host 15 on its own link.
    assert worst_cut(unit("fattree:2x8x1")) == 15
    assert worst_cut(unit("fattree:2x8")) == 15
    slow = unit("fattree:2x8x1").graph.copy()
    for a, b in slow.edges:
        if max(a, b) == 18:  # the spine
            slow.edges[a, b]["rate"] = 0.25
    net = type(unit("ring:4"))("slow spine", slow, 16)
    assert worst_cut(net) == 32
