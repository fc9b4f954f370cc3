"""`caat bench data`: training steps of replicas over a slow network, by the codec of their messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conf.bench import BenchDataConfig
from conf.reading.verb import load_verb
from eval.speed.namespaces import shaped_hosts
from eval.speed.predicted import errors_of, shaped_link, with_data_prediction
from launch.bench.plots import plot_replicas
from launch.bench.report import MIB, Column, Report
from launch.bench.workers import run_on_hosts

# A step that takes this much longer than DeepSpeed's is called slower.
SLOWER = 1.02


def main(argv: list[str]) -> None:
    config = load_verb(BenchDataConfig, argv)
    report = Report(
        "data",
        config.out,
        {
            "rate": Column("rate"),
            "mode": Column("messages"),
            "weights_codec": Column("weights"),
            "step_ms": Column("step ms"),
            "spread_ms": Column("±"),
            "exposed_ms": Column("exposed"),
            "speed_up": Column("speed-up"),
            "bytes": Column("MiB sent", MIB),
            "encode_ms": Column("encode ms"),
            "error": Column("error"),
            "predicted_ms": Column("predicted"),
        },
    )
    for rate in config.rates:
        with shaped_hosts(config.replicas, rate, config.delay, config.burst) as hosts:
            rows = run_on_hosts(hosts, "data", config)
        link = shaped_link(rate, rows)
        for row in with_data_prediction(rows, config, link):
            report.add(rate=rate, delay=config.delay, **row)
    c = config.model
    report.finish(
        f"Training steps of {c.name} at ZeRO 1 in fp32, {config.replicas} replicas of "
        f"{config.accumulation} x {config.micro_batch} x {c.sequence} tokens; speed-up over plain DeepSpeed",
        plot_replicas,
        [errors_of(report.rows), *_slower(report.rows, config.rates)],
    )


def _slower(rows: Sequence[dict], rates: Sequence[str]) -> Iterator[str]:
    """Name the codecs that do not pay, by rate."""
    for rate in rates:
        found = [
            f"{row['mode']} ({1 / row['speed_up']:.2f} of its time)"
            for row in rows
            if row["rate"] == rate and row["encode_ms"] is not None and row["speed_up"] * SLOWER < 1
        ]
        if found:
            yield f"At {rate}, slower than DeepSpeed's own messages: {', '.join(found)}"
