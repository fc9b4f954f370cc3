"""Emulated networks: the kernel routes as the topology does, and each link has its rate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from caat.topology.read import topology
from eval.speed.wires import wired_hosts

MAY_NAMESPACE = os.geteuid() == 0 and all(map(shutil.which, ("ip", "tc", "sysctl")))
pytestmark = pytest.mark.skipif(not MAY_NAMESPACE, reason="network namespaces need root, ip and tc")


def shown(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["mesh:2x3", "fattree:2x2x2"])
def test_packets_take_the_routes_of_the_topology(name):
    net = topology(name, rate=2.5e6)
    with wired_hosts(net, "128kb") as hosts:
        assert len(hosts) == net.nodes
        prefix = hosts[0].namespace.removesuffix("0")
        for here in net.graph:
            for target, host in enumerate(hosts):
                if here != target:
                    (route,) = json.loads(
                        shown("ip", "-j", "-n", f"{prefix}{here}", "route", "get", host.address)
                    )
                    assert route["dev"] == f"to{net.route(here, target)[0][1]}"
        for a, b in net.graph.edges:
            assert "rate 20Mbit" in shown("tc", "-n", f"{prefix}{a}", "qdisc", "show", "dev", f"to{b}")
    assert prefix not in shown("ip", "netns", "list")
