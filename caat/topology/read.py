"""A network from its name or from a JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import networkx as nx

from caat.storage.records import Size, Whole, read_record
from caat.topology.graph import Topology, check_count
from caat.topology.names import named
from conf.checks import require
from conf.units import delay_seconds, rate_bytes


@dataclass(frozen=True)
class _File:
    """Switches are numbered after the nodes. A link is one direction: [from, to, "100mbit", "1ms"]."""

    nodes: Size
    links: list[list[int | str]]
    switches: Whole = 0


def topology(text: str, rate: float, delay: float = 0.0) -> Topology:
    """Return the network with the name ``text``, or in the JSON file at the path ``text``.

    ``rate`` in bytes/s and ``delay`` in seconds are those of links that name none of their own. Raises
    ``ValueError`` for anything that is not a connected network.
    """
    path = Path(text).expanduser()
    if text.endswith(".json") or path.is_file():
        return _from_file(path, rate, delay)
    return named(text, rate, delay)


def _from_file(path: Path, rate: float, delay: float) -> Topology:
    content = read_record(path, _File)
    count, graph = content.nodes + content.switches, nx.DiGraph()
    check_count(str(path), count)
    graph.add_nodes_from(range(content.nodes))
    for link in content.links:
        a, b, named_rate, named_delay = (*link, None, None, None, None)[:4]
        require(
            2 <= len(link) <= 4 and isinstance(a, int) and isinstance(b, int),
            f"{path} has the link {link}: write [from, to], or [from, to, rate, delay] such as "
            '[0, 1, "100mbit", "1ms"]',
        )
        require(
            all(isinstance(end, int) and 0 <= end < count for end in (a, b)) and a != b,
            f"{path} has a link from {a} to {b}: its ends must be two of the {count} nodes and switches, "
            "which are numbered from 0",
        )
        require(
            not graph.has_edge(a, b), f"{path} has two links from {a} to {b}: write one with the rate of both"
        )
        graph.add_edge(
            a,
            b,
            rate=rate if named_rate is None else rate_bytes(str(named_rate), f"{path}: rate"),
            delay=delay if named_delay is None else delay_seconds(str(named_delay), f"{path}: delay"),
        )
    return Topology(str(path), graph, content.nodes)
