"""`caat bench predict`: what partial synchronisation would save on another machine, by formula."""

from __future__ import annotations

from caat.planning.costs import sync_bytes
from caat.planning.prediction import Link, MessageCost, predict
from conf.bench import BenchPredictConfig
from conf.checks import require
from conf.partition import shared_channels
from conf.reading.verb import load_verb
from conf.sync import wire_format
from conf.units import delay_seconds, rate_bytes
from launch.bench.plots import plot_steps
from launch.bench.report import MIB, Column, Report


def main(argv: list[str]) -> None:
    config = load_verb(BenchPredictConfig, argv)
    c, processes = config.model, config.parallel.processes or config.parallel.tensor
    c.check_shards(config.parallel.tensor)
    require(
        config.parallel.tensor % processes == 0,
        f"parallel.processes={processes} does not divide parallel.tensor={config.parallel.tensor}",
    )
    tokens = config.micro_batch * c.sequence
    ours, own = (wire_format(dtype, config.precision) for dtype in (config.wire_dtype, "auto"))
    hardware = config.hardware
    cost = MessageCost(config.message_seconds, config.core_bytes_per_second)
    link = Link(rate_bytes(hardware.link), delay_seconds(config.delay), cost)
    report = Report(
        "predict",
        config.out,
        {
            "mode": Column("sums"),
            "ratio": Column("ratio"),
            "step_ms": Column("step ms"),
            "exposed_ms": Column("exposed"),
            "speed_up": Column("speed-up"),
            "bytes_forward": Column("MiB sent", MIB),
        },
    )
    rows = [("none", 1.0), ("full", 1.0)]
    rows += [(mode, ratio) for ratio in config.ratios for mode in ("partial", "overlap")]
    # Megatron sends activations in their own dtype.
    wires = {row: own if row[0] == "full" else ours for row in rows}
    flops_per_second = hardware.tflops * 1e12
    steps = {
        row: predict(
            c, tokens, processes, *row, wire=wires[row], flops_per_second=flops_per_second, link=link
        )
        for row in rows
    }
    for (mode, ratio), step in steps.items():
        channels = 0 if mode == "none" or processes == 1 else shared_channels(c.hidden, ratio, processes)
        sent = sync_bytes(c, channels, tokens, wires[mode, ratio])
        report.add(
            mode=mode,
            ratio=ratio,
            step_ms=step.seconds * 1e3,
            spread_ms=0.0,
            exposed_ms=step.exposed * 1e3,
            speed_up=steps["full", 1.0].seconds / step.seconds,
            bytes_forward=sent,
            bytes_backward=sent,
        )
    report.finish(
        f"Predicted: {c.name}, {tokens} tokens on {processes} processes of {hardware.tflops:g} TFLOP/s "
        f"({config.gpu}), {hardware.link}, {config.delay}",
        plot_steps,
    )
