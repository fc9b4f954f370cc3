"""Emulated hosts: network namespaces joined by shaped veth links (needs root, Linux, ip and tc)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from conf.units import rate_bytes

# The part of a packet that is not headers: Ethernet of 1500 bytes and its 14, IP, and TCP with timestamps.
PAYLOAD = 1448 / 1514


@dataclass(frozen=True)
class Host:
    """A namespace with one interface to the others."""

    namespace: str
    interface: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs ``arguments`` on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]


@contextmanager
def shaped_hosts(count: int, rate: str, delay: str, burst: str) -> Iterator[list[Host]]:
    """Create ``count`` hosts that each send at ``rate`` (in tc's notation); remove them on exit.

    Two hosts are linked directly, more by a switch. Raises ``ValueError`` if namespaces cannot be created.
    """
    _check_possible()
    _remove_abandoned()
    # Like Ctrl-C, SIGTERM must unwind the stack, so that the namespaces are removed.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    prefix = f"caat-{os.getpid()}"
    hosts = [Host(f"{prefix}-{i}", f"link{i}", f"10.77.0.{i + 1}") for i in range(count)]
    switch = f"{prefix}-switch"
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        if count == 2:
            first, second = hosts
            _ip("link", "add", first.interface, "netns", first.namespace, "type", "veth", "peer",
                second.interface, "netns", second.namespace)  # fmt: skip
        else:
            _ip("netns", "add", switch)
            _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", switch, "link", "set", "bridge", "up")
            for host in hosts:
                port = f"port-{host.interface}"
                _ip("link", "add", host.interface, "netns", host.namespace, "type", "veth", "peer",
                    port, "netns", switch)  # fmt: skip
                _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.namespace, "link", "set", host.interface, "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _shape(host, rate, delay, burst)
        yield hosts
    finally:
        # Deleting a namespace deletes its interfaces.
        for name in [*(host.namespace for host in hosts), switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        signal.signal(signal.SIGTERM, before)


def payload_rate(rate: str) -> float:
    """Return the bytes/s of messages between two hosts that send at ``rate``: tc counts headers too."""
    return rate_bytes(rate) * PAYLOAD


def _shape(host: Host, rate: str, delay: str, burst: str) -> None:
    device = ["dev", host.interface]
    tc = ["tc", "-n", host.namespace, "qdisc", "add", *device]
    _run([*tc, "root", "handle", "1:", "tbf", "rate", rate, "burst", burst, "latency", "50ms"])
    if float(re.match(r"[\d.]+", delay)[0]) > 0:  # type: ignore[index]
        try:
            _run([*tc, "parent", "1:1", "handle", "10:", "netem", "delay", delay, "limit", "100000"])
        except ValueError as error:
            raise ValueError(
                f"delay={delay} needs the kernel's sch_netem; without it, leave delay out: {error}"
            ) from None


def _check_possible() -> None:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not found: install iproute2 to create network namespaces")
    if os.geteuid() != 0:
        raise ValueError("network namespaces need root: run this command with sudo, or try `caat bench step`")


def _remove_abandoned() -> None:
    """Remove namespaces of a run that was killed before it could clean up."""
    for line in _run(["ip", "netns", "list"]).splitlines():
        match = re.match(r"caat-(\d+)-\w+", line)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            subprocess.run(["ip", "netns", "delete", match[0]], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"`{' '.join(command)}` failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
