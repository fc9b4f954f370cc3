"""Runs the processes of a communication benchmark: on this machine, or on emulated hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from caat.parallel.world import variables
from conf.bench import BenchCacheConfig, BenchCollectivesConfig, BenchStackConfig, ReplicaStepsConfig
from eval.speed.namespaces import Host
from launch.command.processes import run_workers, worker_environment

MODULE = f"{__package__}.process"
PORT = 29511
OnHosts = BenchStackConfig | ReplicaStepsConfig | BenchCacheConfig | BenchCollectivesConfig


def run_here(kind: str, config: BenchStackConfig) -> list[dict]:
    """Measure ``kind`` in ``config.processes`` processes; return the rows that the first one wrote."""
    return _rows(kind, config, lambda arguments: run_workers(MODULE, arguments, config.processes))


def run_on_hosts(hosts: Sequence[Host], kind: str, config: OnHosts) -> list[dict]:
    """Measure ``kind`` in one process on each host; return the rows that the first one wrote."""
    return _rows(kind, config, lambda arguments: _run_on_hosts(hosts, arguments))


def _rows(kind: str, config: OnHosts, run: Callable[[list[str]], int]) -> list[dict]:
    """Return what ``run`` measured, given its arguments; exit with its status if that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        settings, rows = Path(folder) / "settings.json", Path(folder) / "rows.json"
        settings.write_text(json.dumps(asdict(config)))
        if status := run([kind, type(config).__name__, str(settings), str(rows)]):
            sys.exit(status)
        return json.loads(rows.read_text())


def _run_on_hosts(hosts: Sequence[Host], arguments: list[str]) -> int:
    environment = os.environ | worker_environment(len(hosts))
    processes = [
        subprocess.Popen(
            host.command(sys.executable, "-m", MODULE, *arguments),
            env=environment | _place(rank, hosts),
        )
        for rank, host in enumerate(hosts)
    ]
    try:
        # Stop at the first failure: the other processes would wait forever for the failed one.
        while None in (ended := [process.poll() for process in processes]) and not any(ended):
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, status in enumerate(ended):
        if status:
            print(f"caat: error: rank {rank} of the benchmark ended with status {status}", file=sys.stderr)
            return 1
    return 0


def _place(rank: int, hosts: Sequence[Host]) -> dict[str, str]:
    return {
        **variables(rank, len(hosts), hosts[0].address, PORT),
        "GLOO_SOCKET_IFNAME": hosts[rank].interface,
        # The namespaces have no name service; torch would warn about it for every connection.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
