"""`caat bench step`: what partial synchronisation saves on this machine's own network."""

from __future__ import annotations

from conf.bench import BenchStepConfig
from conf.reading.verb import load_verb
from eval.speed.predicted import errors_of, measured_link, with_prediction
from launch.bench.plots import plot_steps
from launch.bench.report import MIB, Column, Report
from launch.bench.workers import run_here

COLUMNS = {
    "mode": Column("sums"),
    "ratio": Column("ratio"),
    "step_ms": Column("step ms"),
    "spread_ms": Column("±"),
    "exposed_ms": Column("exposed"),
    "hidden_ms": Column("hidden"),
    "bytes_forward": Column("MiB sent", MIB),
    "predicted_ms": Column("predicted"),
}


def main(argv: list[str]) -> None:
    config = load_verb(BenchStepConfig, argv)
    report = Report("step", config.out, COLUMNS)
    rows = run_here("network", config)
    for row in with_prediction(rows, config, measured_link(rows, config)):
        report.add(**row)
    report.finish(
        f"Forward and backward of {config.layers} blocks, hidden {config.hidden}, {config.batch} x "
        f"{config.sequence} tokens, {config.precision}, {config.processes} processes of this machine",
        plot_steps,
        [errors_of(report.rows)],
    )
