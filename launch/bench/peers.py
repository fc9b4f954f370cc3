"""`caat bench peers`: the same stack in torch's and megatron-core's tensor parallelism, beside ours."""

from __future__ import annotations

from conf.bench import BenchPeersConfig
from launch.bench.link import run_on_hosts, stop_in_order
from launch.bench.namespaces import shaped_hosts
from launch.bench.plots import plot_steps
from launch.bench.report import Report
from launch.bench.step import run_here
from launch.config import load_verb


def main(argv: list[str]) -> None:
    config = load_verb(BenchPeersConfig, argv)
    where = f"hosts at {config.rate}" if config.rate else "processes of this machine"
    report = Report(
        "peers",
        f"Forward and backward of {config.layers} blocks, hidden {config.hidden}, {config.batch} x "
        f"{config.sequence} tokens, {config.precision}, {config.processes} {where}",
        {
            "mode": "by",
            "ratio": "ratio",
            "step_ms": "step ms",
            "spread_ms": "±",
            "of_faster_peer": "of faster peer",
        },
    )
    if config.rate is None:
        rows = run_here("peers", config)
    else:
        stop_in_order()
        with shaped_hosts(config.processes, config.rate, config.delay, config.burst) as hosts:
            rows = run_on_hosts(hosts, "peers", config)
    for row in rows:
        report.add(rate=config.rate, **row)
    report.finish(config.out, plot_steps)
