"""Emulated hosts: network namespaces joined by shaped veth links (needs root, Linux, ip and tc)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
def namespaces(names: Sequence[str], instead: str = "try `caat bench step`") -> Iterator[list[str]]:
    """Create a namespace for each of ``names``; yield their full names and remove them on exit.

    Raises ``ValueError`` if they cannot be created; it then tells what to do ``instead``.
    """
    _check_possible(instead)
    _remove_abandoned()
    # Like Ctrl-C, SIGTERM must unwind the stack, so that the namespaces are removed.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    full = [f"caat-{os.getpid()}-{name}" for name in names]
    try:
        for name in full:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield full
    finally:
        # Deleting a namespace deletes its interfaces.
        for name in full:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def shaped_hosts(count: int, rate: str, delay: str, burst: str) -> Iterator[list[Host]]:
    """Create ``count`` hosts that each send at ``rate`` (in tc's notation); remove them on exit.

    Two hosts are linked directly, more by a switch. Raises ``ValueError`` if namespaces cannot be created.
    """
    with namespaces([*map(str, range(count)), *(["switch"] if count > 2 else [])]) as names:
        hosts = [Host(names[i], f"link{i}", f"10.77.0.{i + 1}") for i in range(count)]
        if count == 2:
            first, second = hosts
            ip("link", "add", first.interface, "netns", first.namespace, "type", "veth", "peer",
                second.interface, "netns", second.namespace)  # fmt: skip
        else:
            switch = names[-1]
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            for host in hosts:
                port = f"port-{host.interface}"
                ip("link", "add", host.interface, "netns", host.namespace, "type", "veth", "peer",
                    port, "netns", switch)  # fmt: skip
                ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        for host in hosts:
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            ip("-n", host.namespace, "link", "set", host.interface, "up")
            shape(host.namespace, host.interface, rate, delay, burst)
        yield hosts


def payload_rate(rate: str) -> float:
    """Return the bytes/s of messages between two hosts that send at ``rate``: tc counts headers too."""
    return rate_bytes(rate) * PAYLOAD


def shape(namespace: str, interface: str, rate: str, delay: str, burst: str, *, queue: str = "50ms") -> None:
    """Let the interface send at ``rate`` after ``delay``; packets that would wait longer than ``queue`` are
    dropped. All are in tc's notation."""
    tc = ["tc", "-n", namespace, "qdisc", "add", "dev", interface]
    run([*tc, "root", "handle", "1:", "tbf", "rate", rate, "burst", burst, "latency", queue])
    if float(re.match(r"[\d.]+", delay)[0]) > 0:  # type: ignore[index]
        try:
            run([*tc, "parent", "1:1", "handle", "10:", "netem", "delay", delay, "limit", "100000"])
        except ValueError as error:
            raise ValueError(
                f"delay={delay} needs the kernel's sch_netem; without it, leave delay out: {error}"
            ) from None


def _check_possible(instead: str) -> None:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not found: install iproute2 to create network namespaces")
    if os.geteuid() != 0:
        raise ValueError(f"network namespaces need root: run this command with sudo, or {instead}")


def _remove_abandoned() -> None:
    """Remove namespaces of a run that was killed before it could clean up."""
    for line in run(["ip", "netns", "list"]).splitlines():
        match = re.match(r"caat-(\d+)-\w+", line)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            subprocess.run(["ip", "netns", "delete", match[0]], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    """Run ``ip`` with the arguments; raise ``ValueError`` if it fails."""
    run(["ip", *arguments])


def run(command: Sequence[str]) -> str:
    """Run the command and return its output; raise ``ValueError`` if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"`{' '.join(command)}` failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
