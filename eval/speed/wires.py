"""Emulated networks of any topology: a namespace for each node and switch, a shaped veth for each link."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from caat.topology.graph import Topology
from eval.speed.namespaces import Host, ip, namespaces, shape

# Few, large packets: each costs the cores time.
MTU = "9000"
# A sender of Reno with a small buffer fits the queue of its first link, in which nothing is dropped.
QUEUE = "200ms"
SYSCTLS = {
    "ip_forward": "1",
    # The way back may be another one.
    "conf.all.rp_filter": "0",
    "conf.default.rp_filter": "0",
    "tcp_congestion_control": "reno",
    "tcp_slow_start_after_idle": "0",
    "tcp_wmem": "4096 65536 1048576",
}


@contextmanager
def wired_hosts(topology: Topology, burst: str) -> Iterator[list[Host]]:
    """Create a host for each node, links with the rates and delays of the topology, and its routes.

    They are removed on exit. A host has one address, on all of its interfaces; each link of the topology may
    send ``burst`` bytes (in tc's notation) at once. Raises ``ValueError`` if namespaces cannot be created.
    """
    with namespaces([f"node{i}" for i in topology.graph], instead="give simulate=true") as created:
        # A switch without links has no place in the graph, but keeps its number.
        names = dict(zip(topology.graph, created, strict=True))
        for name in created:
            ip("netns", "exec", name, "sysctl", "-qw", *(f"net.ipv4.{k}={v}" for k, v in SYSCTLS.items()))
        for a, b in sorted({(min(link), max(link)) for link in topology.graph.edges}):
            ip("link", "add", _interface(b), "mtu", MTU, "netns", names[a], "type", "veth", "peer",
                _interface(a), "mtu", MTU, "netns", names[b])  # fmt: skip
            for here, there in ((a, b), (b, a)):
                ip("-n", names[here], "address", "add", f"{_address(here)}/32", "dev", _interface(there))
                ip("-n", names[here], "link", "set", _interface(there), "up")
        for a, b in topology.graph.edges:
            rate, delay = f"{topology.rate((a, b)) * 8:.0f}bit", f"{topology.delay((a, b)) * 1e6:.0f}us"
            shape(names[a], _interface(b), rate, delay, burst, queue=QUEUE)
        for here, name in names.items():
            _add_routes(topology, here, name)
        yield [
            Host(names[node], _interface(next(topology.graph.successors(node))), _address(node))
            for node in range(topology.nodes)
        ]


def _add_routes(topology: Topology, here: int, name: str) -> None:
    """Let packets to every node leave by the next hop of the topology's route."""
    for target in range(topology.nodes):
        if target == here:
            continue
        after = topology.route(here, target)[0][1]
        # No subnet holds the next hop: it is known to be at the other end of the link.
        via = [] if after == target else ["via", _address(after), "onlink"]
        ip("-n", name, "route", "add", _address(target), *via, "dev", _interface(after),
            "src", _address(here))  # fmt: skip


def _interface(there: int) -> str:
    return f"to{there}"


def _address(node: int) -> str:
    return f"10.77.{node // 250}.{node % 250 + 1}"
