"""`caat bench shards`: the cost of the shard axis in one process, against the same model in plain torch."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from caat.supervision.allocator import keep_large_buffers
from conf.bench import BenchShardsConfig
from conf.reading.verb import load_verb
from eval.speed.shards import VARIANTS, peak_bytes, training_step
from eval.speed.timing import take_turns
from launch.bench.report import Column, Report


def main(argv: list[str]) -> None:
    config = load_verb(BenchShardsConfig, argv)
    keep_large_buffers()
    if config.memory_of is not None:
        print(json.dumps(peak_bytes(config, config.memory_of)))
        return
    report = Report(
        "shards",
        config.out,
        {
            "variant": Column("variant"),
            "step_ms": Column("step ms"),
            "spread_ms": Column("±"),
            "time_ratio": Column("ratio"),
            "memory_mib": Column("peak MiB"),
            "memory_ratio": Column("ratio"),
        },
    )
    names = [name.format(n=config.shards) for name in VARIANTS]
    if not config.compile:
        names.pop()
    steps = {name: training_step(config, i) for i, name in enumerate(names)}
    times = take_turns(steps, config.rounds)
    memory = [_measure_memory(argv, i) for i in range(len(names))]
    for i, name in enumerate(names):
        report.add(
            variant=name,
            step_ms=times[name].median,
            spread_ms=times[name].spread,
            time_ratio=times[name].ratio_to(times[names[0]]),
            memory_mib=memory[i] / 2**20,
            memory_ratio=memory[i] / memory[0],
        )
    report.finish(
        f"Training step in one process: hidden {config.hidden}, {config.layers} layers, sequence "
        f"{config.sequence}, batch {config.batch}, {config.precision}, {torch.get_num_threads()} threads",
    )


def _measure_memory(argv: list[str], variant: int) -> int:
    """Return the peak bytes of the variant, measured in a new process so that it excludes other variants."""
    command = [sys.executable, "-m", f"{__package__}.shards", *argv, f"memory_of={variant}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
