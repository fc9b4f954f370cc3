"""Schedules: that they are correct, their steps, files and mistakes."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from caat.topology.check import check_schedule
from caat.topology.cycle import ring_order
from caat.topology.methods import METHODS, make_schedule
from caat.topology.multitree import multitree
from caat.topology.schedule import COLLECTIVES, Move, Schedule
from caat.topology.schedule_file import read_schedule, write_schedule
from tests.topology.networks import scattered, unit

GRIDS = ["mesh:2x2", "torus:4x4", "mesh:3x3", "torus:3x4", "mesh:2x3x2"]
OTHERS = ["ring:2", "ring:5", "full:6", "full:7", "fattree:4x4", "fattree:2x3x1", "random"]
CASES = [
    (name, method) for name in GRIDS + OTHERS for method in METHODS if name in GRIDS or method != "2d-ring"
]


def network(name):
    return scattered(nodes=7, switches=3, seed=5) if name == "random" else unit(name)


def contributions(schedule: Schedule, collective: str) -> list[list[int]]:
    """Run the schedule on counts: how often each node's contribution is in each chunk of each node.

    A number has 8 bits for the count of each node.
    """
    held = [[256**node for _ in range(schedule.chunks)] for node in range(schedule.nodes)]
    if collective == "all-gather":
        for chunk, owner in owners(schedule).items():
            for node in range(schedule.nodes):
                held[node][chunk] = 256**node if node == owner else 0
    for step in sorted({move.step for move in schedule.moves}):
        now = [move for move in schedule.moves if move.step == step]
        assert len({(m.source, m.target) for m in now}) == len(now), "a link twice in a step"
        for move, sent in [(move, held[move.source][move.chunk]) for move in now]:
            held[move.target][move.chunk] = held[move.target][move.chunk] + sent if move.reduce else sent
    return held


def owners(schedule: Schedule) -> dict[int, int]:
    per = schedule.chunks // schedule.nodes
    return {chunk: chunk // per for chunk in range(schedule.chunks)}


@pytest.mark.parametrize(("name", "method"), CASES)
def test_every_collective_brings_what_it_should(name, method):
    net = network(name)
    for collective in COLLECTIVES:
        schedule = make_schedule(net, method, collective)
        check_schedule(schedule, collective)
        held = contributions(schedule, collective)
        everyone = sum(256**node for node in range(net.nodes))
        for node in range(net.nodes):
            for chunk in range(schedule.chunks):
                if collective != "reduce-scatter" or owners(schedule)[chunk] == node:
                    owner = owners(schedule)[chunk] if collective == "all-gather" else None
                    assert held[node][chunk] == (everyone if owner is None else 256**owner)


STEPS = {"mesh:2x2": 2, "torus:4x4": 5, "torus:4x8": 9, "torus:6x6": 10, "torus:8x8": 17}
STEPS |= {"torus:4x4x4": 12, "mesh:4x4": 8, "mesh:8x8": 32, "full:8": 1}


@pytest.mark.parametrize(("name", "steps"), STEPS.items())
def test_multitree_takes_the_steps_of_the_paper(name, steps):
    assert make_schedule(unit(name), "multitree", "all-gather").steps == steps
    assert make_schedule(unit(name), "multitree").steps == 2 * steps


@pytest.mark.parametrize("name", ["torus:4x4", "mesh:3x3", "fattree:4x4x2", "random"])
def test_trees_span_parents_come_earlier_and_no_link_is_used_twice_in_a_step(name):
    net = network(name)
    forest = multitree(net)
    for root in range(net.nodes):
        joined = {root: 0}
        for step, parent, child, _ in (branch for branch in forest.branches if branch.chunk == root):
            assert joined[parent] < step and child not in joined
            joined[child] = step
        assert len(joined) == net.nodes
    links = [(b.step, link) for b in forest.branches for link in net.route(b.parent, b.child)]
    assert len(links) == len(set(links))


def test_one_tree_of_a_double_binary_tree_sends_from_the_leaves_of_the_other():
    for nodes in (4, 7, 8, 16):
        schedule = make_schedule(unit(f"full:{nodes}"), "double-binary-tree")
        senders = [{m.source for m in schedule.moves if m.chunk == c and not m.reduce} for c in (0, 1)]
        roots = [
            senders[c] - {m.target for m in schedule.moves if m.chunk == c and not m.reduce} for c in (0, 1)
        ]
        assert len(roots[0]) == len(roots[1]) == 1
        # Only the roots, which have one child, may also send in the other tree.
        assert senders[0] & senders[1] <= roots[0] | roots[1]


@pytest.mark.parametrize(
    "name", ["mesh:4x4", "mesh:3x4", "mesh:3x3x2", "torus:3x3", "torus:3x5x3", "full:5", "ring:9"]
)
def test_a_ring_follows_links_where_it_can(name):
    order, net = ring_order(unit(name)), unit(name)
    assert sorted(order) == list(range(net.nodes))
    assert all(net.graph.has_edge(a, b) for a, b in zip(order, order[1:] + order[:1], strict=True))
    path = ring_order(unit("mesh:3x3"))
    assert all(unit("mesh:3x3").graph.has_edge(a, b) for a, b in pairwise(path))


def test_2d_rings_keep_all_links_of_a_square_torus_busy():
    for name, nodes in (("torus:4x4", 16), ("torus:8x8", 64), ("torus:3x3x3", 27)):
        assert make_schedule(unit(name), "2d-ring", "all-gather").steps == nodes - 1


def test_a_file_holds_the_documented_format_and_reads_back(tmp_path):
    schedule, path = make_schedule(unit("mesh:2x3"), "multitree"), tmp_path / "s.json"
    write_schedule(schedule, path)
    content = json.loads(path.read_text())
    assert content["nodes"] == content["chunks"] == 6 and [0, 1] in content["links"]
    assert list(content) == ["nodes", "links", "chunks", "steps"]
    assert content["steps"][0][-1] == "reduce" and content["steps"][-1][-1] == "copy"
    assert read_schedule(path) == schedule
    with pytest.raises(ValueError, match="chunk 0 is reduced, but an all-gather only copies"):
        read_schedule(path, "all-gather")


# All-reduce of one chunk on three nodes: 0 and 2 send to 1, which copies the sum to both.
GOOD = [[1, 0, 1, 0, "reduce"], [2, 2, 1, 0, "reduce"], [3, 1, 0, 0, "copy"], [3, 1, 2, 0, "copy"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"chunks": 2}, "chunk 1 is lost: no step sends it"),
        ({"steps": GOOD[1:]}, "chunk 0 is lost: nodes 0 and 1 both keep a sum"),
        ({"steps": GOOD[:3]}, "chunk 0 is lost: it does not reach node 2"),
        (
            {"steps": [*GOOD, [2, 0, 1, 0, "reduce"]]},
            "node 0 sends its sum twice, which adds its contribution",
        ),
        ({"steps": [*GOOD, [3, 1, 0, 0, "copy"]]}, "step 3 uses the link from 1 to 0 twice"),
        ({"steps": [*GOOD, [4, 1, 0, 0, "copy"]]}, "node 0 has it already when step 4 sends it a copy"),
        (
            {"steps": [*GOOD[:3], [2, 1, 2, 0, "copy"]]},
            "node 1 sends a copy in step 2, but has it only after step 2",
        ),
        (
            {"steps": [[1, 0, 1, 0, "reduce"], [1, 1, 2, 0, "reduce"], *GOOD[2:]]},
            "receives another contribution",
        ),
        ({"steps": [*GOOD, [4, 0, 2, 0, "copy"]]}, "uses a link from 0 to 2, which is not one of its links"),
        (
            {"steps": [*GOOD, [4, 1, 0, 1, "copy"]]},
            "sends chunk 1 from 1 to 0, but its 1 chunks are numbered",
        ),
        ({"nodes": 2}, "from 2 to 1, which must be two of the 2 nodes"),
        ({"steps": [[1, 0, 1, 0, "add"]]}, "which must be 'reduce' or 'copy'"),
        ({"steps": [[1, 0, 1, 0]]}, "has no steps.0.4"),
        ({"chunks": 0}, "has chunks=0, which must be"),
        ({"nodes": 2_000_000_000}, "has 2,000,000,000 nodes and switches: at most 1,024"),
        ({"links": 3}, "has links=3, which must be"),
    ],
)
def test_an_incorrect_file_is_one_clear_message(tmp_path, change, message):
    path = tmp_path / "s.json"
    good = {"nodes": 3, "links": [[0, 1], [1, 0], [2, 1], [1, 2]], "chunks": 1, "steps": GOOD}
    path.write_text(json.dumps(good | change))
    if not change:
        assert read_schedule(path).steps == 3
        return
    with pytest.raises(ValueError, match=message) as raised:
        read_schedule(path)
    assert "\n" not in str(raised.value) and "s.json" in str(raised.value)


def test_methods_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="topology=ring:5 has no 2-D ring: it needs a mesh or torus"):
        make_schedule(unit("ring:5"), "2d-ring")
    with pytest.raises(ValueError, match="method=star is unknown: write one of ring, two-way-ring, 2d-ring"):
        make_schedule(unit("ring:5"), "star")


def test_copies_that_go_in_a_circle_are_refused():
    circle = Schedule.of(3, 1, [Move(1, 0, 1, 0, False), Move(2, 1, 2, 0, False), Move(3, 2, 0, 0, False)])
    with pytest.raises(ValueError, match="every node receives it, so that no node has it first"):
        check_schedule(circle, "all-gather")
