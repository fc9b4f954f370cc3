"""The simulator: closed forms, a second implementation, the bound, and contention."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from caat.topology.bound import least_seconds
from caat.topology.graph import Topology
from caat.topology.methods import METHODS, make_schedule
from caat.topology.read import topology
from caat.topology.schedule import COLLECTIVES, Move, Schedule
from caat.topology.simulate import seconds
from tests.topology.networks import scattered, unit


@pytest.mark.parametrize("nodes", [2, 5, 8])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_ring_takes_its_closed_form(nodes, pieces):
    net = topology(f"ring:{nodes}", rate=100.0, delay=0.0)
    ring = make_schedule(net, "ring")
    assert seconds(ring, net, 1200.0, pieces) == pytest.approx(2 * (nodes - 1) * 12.0 / nodes)
    late = topology(f"ring:{nodes}", rate=100.0, delay=0.5)
    assert seconds(ring, late, 1200.0) == pytest.approx(2 * (nodes - 1) * (12.0 / nodes + 0.5))


def test_a_chain_of_pieces_takes_its_closed_form():
    net = topology("mesh:5", rate=10.0, delay=0.1)
    chain = Schedule.of(5, 1, [Move(i + 1, i, i + 1, 0, False) for i in range(4)])
    for pieces in (1, 2, 8):
        assert seconds(chain, net, 40.0, pieces) == pytest.approx((3 + pieces) * 4.0 / pieces + 0.4)


def test_chunks_of_different_sizes_take_their_own_time():
    """Node 0 sums three chunks of a byte each, node 1 one of ten."""
    net = topology("full:2", rate=10.0)
    sums = Schedule.of(2, 4, [Move(i + 1, int(i < 3), int(i == 3), i, True) for i in range(4)])
    assert seconds(sums, net, [10.0, 10.0, 10.0, 100.0]) == pytest.approx(10.0)
    assert seconds(sums, net, 40.0) == seconds(sums, net, [10.0] * 4) == pytest.approx(3.0)


def test_messages_over_several_hops_pass_through_and_occupy_their_links():
    net = topology("mesh:4", rate=10.0, delay=0.25)
    far = Move(1, 0, 3, 0, False)
    alone = Schedule.of(4, 2, [far])
    assert seconds(alone, net, 40.0) == pytest.approx(2.0 + 3 * 0.25)
    # The message from 1 holds the link to 2 from the beginning; the one from 0 waits for it.
    both = Schedule.of(4, 2, [far, Move(1, 1, 2, 1, False)])
    assert seconds(both, net, 40.0) == pytest.approx(2.0 + 2.0 + 2 * 0.25)


def test_a_slow_link_on_the_way_sets_the_pace():
    net = topology("mesh:4", rate=10.0)
    graph = net.graph.copy()
    graph.edges[1, 2]["rate"] = 4.0
    slow = Topology("slow", graph, 4)
    assert seconds(Schedule.of(4, 1, [Move(1, 0, 3, 0, False)]), slow, 40.0) == pytest.approx(10.0)


def by_steps(schedule: Schedule, net: Topology, size: float, pieces: int) -> float:
    """A second implementation, for schedules along links: every link first in, first out, step by step."""
    free, have, unit_size = {}, {}, size / schedule.chunks / pieces
    for step in sorted({move.step for move in schedule.moves}):
        arrived = []
        for _, a, b, chunk, _ in (move for move in schedule.moves if move.step == step):
            for j in range(pieces):
                start = max(free.get((a, b), 0.0), have.get((a, chunk, j), 0.0))
                free[a, b] = start + unit_size / net.rate((a, b))
                arrived.append(((b, chunk, j), free[a, b] + net.delay((a, b))))
        for key, time in arrived:
            have[key] = max(have.get(key, 0.0), time)
    return max(have.values())


@pytest.mark.parametrize("name", ["torus:4x4", "mesh:2x3", "full:6", "torus:3x3x3"])
@pytest.mark.parametrize("method", ["two-way-ring", "multitree"])
@pytest.mark.parametrize("pieces", [1, 4])
def test_it_agrees_with_a_second_implementation_on_unequal_links(name, method, pieces):
    graph, draw = unit(name).graph.copy(), random.Random(3)
    for pair in graph.edges:
        graph.edges[pair].update(rate=draw.uniform(1, 5), delay=draw.uniform(0, 0.1))
    net = Topology(name, graph, unit(name).nodes)
    for collective in COLLECTIVES:
        schedule = make_schedule(unit(name), method, collective)
        assert all(graph.has_edge(*link) for link in schedule.links)
        assert seconds(schedule, net, 100.0, pieces) == pytest.approx(by_steps(schedule, net, 100.0, pieces))


def crossing(net: Topology, size: float) -> float:
    """The time of the smallest cut, which all data cross, or of 2 (n - 1) messages for each number."""
    ends = [(a, b) for a in range(net.nodes) for b in range(net.nodes) if a != b]
    cut = min(nx.maximum_flow_value(net.graph, a, b, capacity="rate") for a, b in ends)
    total = sum(net.rate(pair) for pair in net.graph.edges)
    return size * max(1 / cut, 2 * (net.nodes - 1) / total)


def test_phases_that_overlap_can_beat_twice_the_all_gather_on_a_mesh():
    net = unit("mesh:3x3")
    schedule = make_schedule(net, "multitree")
    assert seconds(schedule, net, 72.0) == pytest.approx(least_seconds(net, 72.0))
    assert crossing(net, 72.0) < seconds(schedule, net, 72.0, pieces=2) < least_seconds(net, 72.0)


NETS = ["mesh:2x2", "torus:4x4", "mesh:3x3", "torus:3x4", "full:8", "ring:5", "fattree:2x4x2", "random"]


@pytest.mark.parametrize("name", NETS)
def test_no_schedule_beats_the_optimum(name):
    net = scattered(nodes=6, switches=2, seed=1) if name == "random" else unit(name)
    for method in METHODS:
        if method == "2d-ring" and not net.shape:
            continue
        for collective in COLLECTIVES:
            schedule = make_schedule(net, method, collective)
            time, size = seconds(schedule, net, 64.0, pieces=2), 64.0 / schedule.chunks
            # Only on networks of equal nodes, all all-reduces are bound by twice the all-gather.
            if collective != "all-reduce" or name.startswith(("torus", "ring", "full", "mesh:2x2")):
                assert time >= least_seconds(net, 64.0, collective) * (1 - 1e-12)
            else:
                assert time >= crossing(net, 64.0) * (1 - 1e-12)
            if name != "random" and all(net.graph.has_edge(*link) for link in schedule.links):
                assert time <= schedule.steps * size * (1 + 1e-12), "steps are no barriers"


def test_the_optimum_is_reached_where_all_links_are_always_busy():
    for name, method in (("mesh:2x2", "two-way-ring"), ("torus:4x4", "2d-ring"), ("full:8", "multitree")):
        time = seconds(make_schedule(unit(name), method), unit(name), 48.0)
        assert time == pytest.approx(least_seconds(unit(name), 48.0))


def test_multitree_on_a_torus_beats_a_ring_and_on_a_mesh_a_two_way_ring_beats_it():
    torus, mesh = unit("torus:8x8"), unit("mesh:4x4")
    ring, tree = (seconds(make_schedule(torus, method), torus, 64.0) for method in ("ring", "multitree"))
    assert ring / tree >= 2.2
    both, tree = (seconds(make_schedule(mesh, m), mesh, 64.0) for m in ("two-way-ring", "multitree"))
    assert both < tree
