"""From the name of a network, such as ``torus:4x4``, to its graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import networkx as nx

from caat.topology.graph import Pair, Topology, check_count
from conf.checks import require

Sizes = tuple[int, ...]


def named(name: str, rate: float, delay: float) -> Topology:
    """Return the network ``name``, whose links all have ``rate`` in bytes/s and ``delay`` in seconds.

    Raises ``ValueError`` for an unknown name, and for sizes that it does not take.
    """
    match = re.fullmatch(r"([a-z]+):(\d+(?:x\d+)*)", name)
    require(
        match is not None and match[1] in KINDS,
        f"topology={name} is neither a name nor a JSON file: write "
        "ring:8, full:8, mesh:4x4, torus:4x4, fattree:LEAVESxHOSTSxSPINES or the path of a file",
    )
    assert match is not None
    axes, make = KINDS[match[1]]
    sizes = tuple(map(int, match[2].split("x")))
    require(len(sizes) in axes, f"topology={name} has {len(sizes)} size(s), {match[1]} takes {_words(axes)}")
    # A fat tree may have one host at each leaf, or one spine.
    small = [size for place, size in enumerate(sizes) if size < (1 if place and match[1] == "fattree" else 2)]
    require(not small, f"topology={name} has a size of {min(small, default=0)}: sizes are at least 2")
    # Before the links are made, which would take the memory of the machine.
    several = max(prod(sizes[:2]), sizes[-1]) if match[1] == "fattree" else prod(sizes)
    check_count(f"topology={name}", several)
    nodes, links = make(sizes)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(links, rate=rate, delay=delay)
    return Topology(name, graph, nodes, sizes if match[1] in ("mesh", "torus") else ())


def _words(axes: range) -> str:
    return str(axes[0]) if len(axes) == 1 else f"{axes[0]} to {axes[-1]}"


def _full(sizes: Sizes) -> tuple[int, Iterator[Pair]]:
    (n,) = sizes
    return n, ((a, b) for a in range(n) for b in range(n) if a != b)


def _mesh(sizes: Sizes) -> tuple[int, Iterator[Pair]]:
    return prod(sizes), _grid(sizes, wraps=False)


def _torus(sizes: Sizes) -> tuple[int, Iterator[Pair]]:
    """A size of 2 has one link each way, not two."""
    return prod(sizes), _grid(sizes, wraps=True)


def _grid(sizes: Sizes, *, wraps: bool) -> Iterator[Pair]:
    places = list(product(*map(range, sizes)))
    number = {place: i for i, place in enumerate(places)}
    for place in places:
        for axis, size in enumerate(sizes):
            for by in (1, -1):
                at = place[axis] + by
                at = at % size if wraps else at
                other = (*place[:axis], at, *place[axis + 1 :])
                if other in number:
                    yield number[place], number[other]


def _fat_tree(sizes: Sizes) -> tuple[int, Iterator[Pair]]:
    """Two levels: hosts on leaf switches, and a link from each leaf to each spine.

    By default, there are as many spines as hosts on a leaf: the tree is non-blocking.
    """
    leaves, hosts, spines = (*sizes, sizes[1])[:3]
    nodes = leaves * hosts
    up = [(host, nodes + host // hosts) for host in range(nodes)]
    up += [(nodes + leaf, nodes + leaves + spine) for leaf in range(leaves) for spine in range(spines)]
    return nodes, (pair for a, b in up for pair in ((a, b), (b, a)))


# How many sizes each takes, and its nodes and links.
KINDS: dict[str, tuple[range, Callable[[Sizes], tuple[int, Iterator[Pair]]]]] = {
    "ring": (range(1, 2), _torus),
    "full": (range(1, 2), _full),
    "mesh": (range(1, 5), _mesh),
    "torus": (range(1, 5), _torus),
    "fattree": (range(2, 4), _fat_tree),
}
