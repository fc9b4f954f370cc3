"""`caat bench checkpoint`: the cost of a save during training, and of loading against reading the bytes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from caat.machine import available_cores
from caat.parallel.world import launched
from caat.supervision.control import Control
from caat.supervision.device import choose_device, start_process_group, stop_process_group
from conf.bench import BenchCheckpointConfig
from conf.reading.verb import load_verb
from eval.speed.saving import SavingBenchmark
from launch.bench.report import Column, Report
from launch.command.errors import user_errors
from launch.command.processes import run_workers


def main(argv: list[str]) -> None:
    config = load_verb(BenchCheckpointConfig, argv)
    report = Report(
        "checkpoint",
        config.out,
        {
            "what": Column("what"),
            "seconds": Column("s"),
            "sync_save_s": Column("save s"),
            "blocked_s": Column("blocks s"),
            "ratio": Column("ratio"),
            "low": Column("low"),
            "high": Column("high"),
        },
    )
    if config.processes > 1 and not launched():
        if status := run_workers(f"{__package__}.checkpoint", argv, config.processes):
            raise SystemExit(status)
        return
    torch.set_num_threads(config.threads or max(1, available_cores() // config.processes))
    start_process_group(choose_device("cpu", 0, 1))
    Path(config.folder).mkdir(parents=True, exist_ok=True)
    control = Control()
    with tempfile.TemporaryDirectory(dir=config.folder, prefix="bench-") as folder:
        bench = SavingBenchmark(config, Path(control.gather(folder)[0]), control)
        rows = [bench.saving(), bench.loading()]
        control.gather(None)
    if control.rank == 0:
        threads = torch.get_num_threads()
        for row in rows:
            report.add(**row)
        report.finish(
            f"{bench.parameters / 1e6:.0f} M parameters, {bench.bytes / 1e6:,.0f} MB a checkpoint, "
            f"{config.processes} processes of {threads} threads on {available_cores()} cores",
        )
    stop_process_group()


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
