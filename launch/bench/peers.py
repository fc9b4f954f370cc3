"""`caat bench peers`: the same stack with the tensor parallelism of torch, megatron-core and DeepSpeed."""

from __future__ import annotations

from conf.bench import BenchPeersConfig
from conf.reading.verb import load_verb
from eval.speed.namespaces import shaped_hosts
from launch.bench.plots import plot_steps
from launch.bench.report import Column, Report
from launch.bench.workers import run_here, run_on_hosts


def main(argv: list[str]) -> None:
    config = load_verb(BenchPeersConfig, argv)
    where = f"hosts at {config.rate}" if config.rate else "processes of this machine"
    report = Report(
        "peers",
        config.out,
        {
            "mode": Column("by"),
            "ratio": Column("ratio"),
            "step_ms": Column("step ms"),
            "spread_ms": Column("±"),
            "of_fastest_peer": Column("of fastest peer"),
        },
    )
    if config.rate is None:
        rows = run_here("peers", config)
    else:
        with shaped_hosts(config.processes, config.rate, config.delay, config.burst) as hosts:
            rows = run_on_hosts(hosts, "peers", config)
    for row in rows:
        report.add(rate=config.rate, **row)
    report.finish(
        f"Forward and backward of {config.layers} blocks, hidden {config.hidden}, {config.batch} x "
        f"{config.sequence} tokens, {config.precision}, {config.processes} {where}",
        plot_steps,
    )
