"""The schedules of a network, by the names of their methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from caat.topology.binary_trees import double_binary_tree, double_binary_tree_of_each
from caat.topology.forest import Forest, collect
from caat.topology.graph import Topology
from caat.topology.multitree import multitree
from caat.topology.rings import ring, ring_2d, ring_backward, two_way_ring
from caat.topology.schedule import COLLECTIVES, Schedule
from conf.checks import require

METHODS: Mapping[str, Callable[[Topology], Forest]] = {
    "ring": ring,
    "two-way-ring": two_way_ring,
    "2d-ring": ring_2d,
    "double-binary-tree": double_binary_tree,
    "multitree": multitree,
}


def methods_of(topology: Topology) -> list[str]:
    """Return the methods that have a schedule for the network."""
    return [method for method in METHODS if method != "2d-ring" or len(topology.shape) >= 2]


def make_schedule(topology: Topology, method: str, collective: str = "all-reduce") -> Schedule:
    """Return the schedule of a ``collective`` on the network. Raise ``ValueError`` if ``method`` has none."""
    require(method in METHODS, f"method={method} is unknown: write one of {', '.join(METHODS)}")
    assert collective in COLLECTIVES
    grow = METHODS[method]
    if grow is double_binary_tree and collective != "all-reduce":
        grow = double_binary_tree_of_each
    # One direction of the links carries all of a one-way ring.
    return collect(grow(topology), collective, ring_backward(topology) if grow is ring else None)
