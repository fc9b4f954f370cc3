"""Networks by name and from JSON files: their links, routes and mistakes."""

from __future__ import annotations

import json
from itertools import product

import networkx as nx
import pytest

from caat.topology.read import topology
from tests.topology.networks import unit


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("ring:8", nx.cycle_graph(8)),
        ("full:5", nx.complete_graph(5)),
        ("mesh:3x4", nx.grid_graph((4, 3))),
        ("torus:4x5", nx.grid_graph((5, 4), periodic=True)),
        ("torus:3x3x4", nx.grid_graph((4, 3, 3), periodic=True)),
        ("torus:2x2", nx.cycle_graph(4)),
    ],
)
def test_a_name_gives_the_graph_that_networkx_gives(name, reference):
    graph = unit(name).graph
    assert nx.is_isomorphic(graph, reference.to_directed())
    if not nx.utils.graphs_equal(reference, nx.convert_node_labels_to_integers(reference)):
        numbered = nx.convert_node_labels_to_integers(reference, ordering="sorted").to_directed()
        assert set(graph.edges) == set(numbered.edges)


def test_a_fat_tree_has_hosts_leaves_and_spines():
    net = unit("fattree:4x3x2")
    assert (net.nodes, len(net.graph)) == (12, 18)
    assert {net.graph.degree(host) for host in range(12)} == {2}
    assert net.neighbours(0) == list(range(1, 12)), "no route passes through another host"
    assert net.route(0, 2) == ((0, 12), (12, 2))
    # Destinations alternate between the two spines.
    assert [net.route(0, host)[1][1] for host in range(3, 7)] == [17, 16, 17, 16]
    assert unit("fattree:4x3").graph.number_of_nodes() == 12 + 4 + 3


@pytest.mark.parametrize("name", ["mesh:3x4", "torus:4x5", "fattree:2x3x2"])
def test_routes_are_shortest_paths(name):
    net = unit(name)
    lengths = dict(nx.all_pairs_shortest_path_length(net.graph))
    for a in range(net.nodes):
        for b in range(net.nodes):
            path = net.route(a, b)
            assert len(path) == lengths[a][b] and all(pair in net.graph.edges for pair in path)
            ends = [a, *(pair[1] for pair in path)]
            assert ends[-1] == b and [pair[0] for pair in path] == ends[:-1]


@pytest.mark.parametrize("name", ["mesh:2x2", "mesh:3x4", "torus:4x5", "torus:3x4x2"])
def test_routes_on_grids_go_along_one_axis_after_the_other(name):
    net = unit(name)
    place = dict(enumerate(product(*map(range, net.shape))))
    for a in range(net.nodes):
        for b in range(net.nodes):
            axes = [
                next(axis for axis in range(len(net.shape)) if place[u][axis] != place[v][axis])
                for u, v in net.route(a, b)
            ]
            assert axes == sorted(axes)


def test_a_file_names_rates_and_delays_or_takes_the_given_ones(tmp_path):
    path = tmp_path / "net.json"
    links = [[0, 1, "8mbit", "2ms"], [1, 0, "16mbit"], [1, 2], [2, 1], [2, 3], [3, 2]]
    path.write_text(json.dumps({"nodes": 3, "switches": 1, "links": links}))
    net = topology(str(path), rate=5.0, delay=0.25)
    assert net.nodes == 3 and len(net.graph) == 4 and len(net.graph.edges) == 6
    assert (net.rate((0, 1)), net.delay((0, 1))) == (1e6, 0.002)
    assert (net.rate((1, 0)), net.delay((1, 0))) == (2e6, 0.25)
    assert (net.rate((1, 2)), net.delay((1, 2))) == (5.0, 0.25)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("star:8", "topology=star:8 is neither a name nor a JSON file: write ring:8"),
        ("ring", "is neither a name nor a JSON file"),
        ("ring:0", "has a size of 0: sizes are at least 2"),
        ("ring:1", "has a size of 1: sizes are at least 2"),
        ("mesh:4x1", "has a size of 1"),
        ("fattree:4x0", "has a size of 0"),
        ("ring:4x4", r"has 2 size\(s\), ring takes 1"),
        ("fattree:4", r"has 1 size\(s\), fattree takes 2 to 3"),
        ("full:99999999", "at most 1,024"),
        ("fattree:2x2x99999999", "at most 1,024"),
        ("missing.json", "missing.json cannot be read"),
    ],
)
def test_an_unusable_name_is_one_clear_message(name, message):
    with pytest.raises(ValueError, match=message) as raised:
        topology(name, rate=1.0)
    assert "\n" not in str(raised.value)


PAIR = [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ({"nodes": 2}, "has no links"),
        ({"nodes": 0, "links": []}, "has nodes=0, which must be"),
        ({"nodes": 1, "links": []}, r"has 1 node\(s\): a collective needs at least 2"),
        ({"nodes": 2, "links": []}, "is not connected: no path from 0 to node 1"),
        ({"nodes": 2, "links": [[0, 1]]}, "is not connected: no path to 0 from node 1"),
        ({"nodes": 4, "links": [*PAIR, [2, 3], [3, 2]]}, "no path from 0 to node 2"),
        ({"nodes": 2, "links": [*PAIR, [0, 1]]}, "has two links from 0 to 1"),
        ({"nodes": 2, "links": [*PAIR, [1, 1]]}, "has a link from 1 to 1"),
        (
            {"nodes": 2, "links": [*PAIR, [1, 2]]},
            "has a link from 1 to 2: its ends must be two of the 2 nodes",
        ),
        ({"nodes": 2, "links": [*PAIR, [1]]}, r"has the link \[1\]: write \[from, to\]"),
        ({"nodes": 2, "links": [[0, 1, "0mbit"], [1, 0]]}, "rate=0mbit must be above 0"),
        ({"nodes": 2, "links": [[0, 1, "fast"], [1, 0]]}, "rate=fast is not a rate"),
        ({"nodes": 2, "links": [[0, 1, "1mbit", "soon"], [1, 0]]}, "delay=soon is not a time"),
        ({"nodes": 2, "links": "all"}, 'has links="all", which must be'),
        ({"nodes": 2_000_000_000, "links": PAIR}, "has 2,000,000,000 nodes and switches: at most 1,024"),
        ({"nodes": 2, "switches": 1023, "links": PAIR}, "has 1,025 nodes and switches: at most 1,024"),
    ],
)
def test_an_unusable_file_is_one_clear_message(tmp_path, content, message):
    path = tmp_path / "net.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        topology(str(path), rate=1.0)
    assert "\n" not in str(raised.value) and "net.json" in str(raised.value)


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="topology=ring:4: the link from 0 to 1 has a rate of 0 bytes/s"):
        topology("ring:4", rate=0.0)
    with pytest.raises(ValueError, match="has a delay of -1 s"):
        topology("ring:4", rate=1.0, delay=-1.0)
