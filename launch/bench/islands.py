"""`caat bench islands`: training steps of islands over a slow network, against summed gradients."""

from __future__ import annotations

from conf.bench import BenchIslandsConfig
from conf.reading.verb import load_verb
from eval.speed.namespaces import shaped_hosts
from eval.speed.predicted import errors_of, shaped_link, with_island_prediction
from launch.bench.plots import plot_replicas
from launch.bench.report import MIB, Column, Report
from launch.bench.workers import run_on_hosts


def main(argv: list[str]) -> None:
    config = load_verb(BenchIslandsConfig, argv)
    report = Report(
        "islands",
        config.out,
        {
            "rate": Column("rate"),
            "mode": Column("islands"),
            "step_ms": Column("step ms"),
            "spread_ms": Column("±"),
            "exposed_ms": Column("exposed"),
            "speed_up": Column("speed-up"),
            "tokens_per_second": Column("tokens/s"),
            "predicted_ms": Column("predicted"),
            "bytes": Column(f"MiB in {config.every} steps", MIB),
        },
    )
    for rate in config.rates:
        with shaped_hosts(config.replicas, rate, config.delay, config.burst) as hosts:
            rows = run_on_hosts(hosts, "islands", config)
        link = shaped_link(rate, rows)
        for row in with_island_prediction(rows, config, link):
            report.add(rate=rate, delay=config.delay, **row)
    c = config.model
    report.finish(
        f"Training steps of {c.name} at ZeRO 1 in fp32, {config.replicas} islands of "
        f"{config.accumulation} x {config.micro_batch} x {c.sequence} tokens; speed-up over plain DeepSpeed",
        plot_replicas,
        [errors_of(report.rows)],
    )
