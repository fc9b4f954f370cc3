"""`caat bench profile`: the time of GEMMs, copies and the rest in a step, and memory saved for backward."""

from __future__ import annotations

import os

from conf.bench import BenchProfileConfig
from conf.reading.verb import load_verb
from launch.bench.report import MIB, Column, Report
from launch.bench.workers import run_here


def main(argv: list[str]) -> None:
    config = load_verb(BenchProfileConfig, argv)
    report = Report(
        "profile",
        config.out,
        {
            "mode": Column("sums"),
            "ratio": Column("ratio"),
            "gemm_ms": Column("GEMM ms"),
            "copy_ms": Column("copies ms"),
            "copies": Column("clones, cats"),
            "other_ms": Column("other ms"),
            "saved_bytes": Column("MiB saved", MIB),
        },
    )
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it logs every start and stop
    for row in run_here("profile", config):
        report.add(**row)
    report.finish(
        f"One step of {config.layers} blocks, hidden {config.hidden}, {config.batch} x {config.sequence} "
        f"tokens, {config.precision}, {config.processes} processes of this machine: mean of {config.rounds}",
    )
