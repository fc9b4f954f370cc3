"""`caat bench link`: a slow network that anyone can reproduce, between hosts on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from caat.training.prediction import Link
from conf.bench import BenchLinkConfig, BenchStackConfig, delay_seconds, rate_bytes
from launch.bench.namespaces import Host, shaped_hosts
from launch.bench.plots import plot_speed_up, plot_steps
from launch.bench.report import Report
from launch.bench.step import COLUMNS, stack_settings, with_prediction
from launch.config import load_verb


def main(argv: list[str]) -> None:
    config = load_verb(BenchLinkConfig, argv)
    stop_in_order()
    report = Report(
        "link",
        f"Forward and backward of {config.layers} blocks, hidden {config.hidden}, {config.batch} x "
        f"{config.sequence} tokens, {config.precision}, on {config.processes} hosts",
        {"rate": "rate"} | COLUMNS,
    )
    for rate in config.rates:
        with shaped_hosts(config.processes, rate, config.delay, config.burst) as hosts:
            rows = run_on_hosts(hosts, "network", config)
        link = Link(rate_bytes(rate), delay_seconds(config.delay))
        for row in with_prediction(rows, config, link):
            report.add(rate=rate, delay=config.delay, **row)
    plot = plot_speed_up if len(config.rates) > 1 else plot_steps
    report.finish(config.out, plot)


def stop_in_order() -> None:
    """SIGTERM ends the benchmark as Ctrl-C does: every block is left, which takes the namespaces away."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def run_on_hosts(hosts: list[Host], kind: str, config: BenchStackConfig) -> list[dict]:
    """One measuring process on each host; the rows that the first of them wrote."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("settings.json", "rows.json")]
        paths[0].write_text(json.dumps(stack_settings(config)))
        processes = [
            subprocess.Popen(
                host.command(sys.executable, "-m", "launch.bench.measure", kind, *map(str, paths)),
                env={**os.environ, **_environment(rank, hosts)},
            )
            for rank, host in enumerate(hosts)
        ]
        try:
            _wait_for_all(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return json.loads(paths[1].read_text())


def _wait_for_all(processes: list[subprocess.Popen]) -> None:
    """Raises ``ChildProcessError`` as soon as one of them fails: the others would wait for it for ever."""
    while None in (status := [process.poll() for process in processes]):
        if any(status):
            break
        time.sleep(0.1)
    for rank, process in enumerate(processes):
        if process.poll():
            raise ChildProcessError(f"rank {rank} of the benchmark ended with status {process.returncode}")


def _environment(rank: int, hosts: list[Host]) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // len(hosts))
    return {
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": "29511",
        "RANK": str(rank),
        "WORLD_SIZE": str(len(hosts)),
        "LOCAL_RANK": "0",
        "GLOO_SOCKET_IFNAME": hosts[rank].interface,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # The namespaces have no name service, which torch would say for every connection.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
