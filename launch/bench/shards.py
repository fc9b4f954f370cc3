"""`caat bench shards`: what the shard axis costs in one process, against the same model in plain torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import torch

from caat.parallel.mesh import Mesh
from caat.training.device import PRECISIONS, choose_device
from caat.training.memory import peak_resident_bytes
from conf.bench import BenchShardsConfig
from launch.bench.dense import DenseGPT
from launch.bench.report import Column, Report
from launch.bench.timing import take_turns
from launch.config import load_verb
from layers.gpt import GPT
from layers.weights import initial_weights

VARIANTS = {
    "plain nn.Linear": None,
    "one shard": (1, 1.0),
    "{n} shards, ratio 1": ("n", 1.0),
    "{n} shards, ratio 0.5": ("n", 0.5),
    "{n} shards, ratio 0.5, compiled": ("n", 0.5),
}


def main(argv: list[str]) -> None:
    config = load_verb(BenchShardsConfig, argv)
    if config.memory_of is not None:
        print(json.dumps(_peak_bytes(config, config.memory_of)))
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
    steps = {name: _step(config, i) for i, name in enumerate(names)}
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


def _step(config: BenchShardsConfig, variant: int) -> Callable[[], None]:
    """One step of the variant: forward, backward, AdamW."""
    device = choose_device(config.device, 0, 1)
    dtype = PRECISIONS[config.precision]
    shape = config.model(config.vocab_size)
    name, cut = list(VARIANTS.items())[variant]
    model: DenseGPT | GPT
    if cut is None:
        model = DenseGPT(shape).to(device, dtype)
    else:
        shards, ratio = (config.shards, cut[1]) if cut[0] == "n" else (1, cut[1])
        full = initial_weights(shape, 1)
        model = GPT.empty(shape, Mesh(shards), ratio, device=device, dtype=dtype).fill(full)
        if "compiled" in name:
            model.compile_cores()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    text = torch.randint(shape.vocab_size, (config.batch, config.sequence + 1), device=device)
    tokens, targets = text[:, :-1], text[:, 1:]

    def step() -> None:
        model(tokens, targets).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _measure_memory(argv: list[str], variant: int) -> int:
    """Peak bytes of the variant in a process of its own, so that no other variant is in the figure."""
    command = [sys.executable, "-m", "launch.bench.shards", *argv, f"memory_of={variant}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak_bytes(config: BenchShardsConfig, variant: int) -> int:
    before = peak_resident_bytes()
    step = _step(config, variant)
    for _ in range(3):
        step()
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes() - before


if __name__ == "__main__":
    main(sys.argv[1:])
