"""A training step in one process, for the sharded model and for the same model in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from caat.parallel.mesh import Mesh
from caat.supervision.device import PRECISIONS, choose_device
from caat.training.memory import peak_resident_bytes
from conf.bench import BenchShardsConfig
from eval.speed.dense import DenseGPT
from layers.gpt import GPT
from layers.weights import initial_weights

VARIANTS = {
    "plain nn.Linear": None,
    "one shard": (1, 1.0),
    "{n} shards, ratio 1": ("n", 1.0),
    "{n} shards, ratio 0.5": ("n", 0.5),
    "{n} shards, ratio 0.5, compiled": ("n", 0.5),
}


def training_step(config: BenchShardsConfig, variant: int) -> Callable[[], None]:
    """Return a step of the variant: forward, backward, AdamW."""
    device = choose_device(config.device, 0, 1, prefix="")
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


def peak_bytes(config: BenchShardsConfig, variant: int) -> int:
    """Return the variant's peak memory, in a process that has run no other variant."""
    before = peak_resident_bytes()
    step = training_step(config, variant)
    for _ in range(3):
        step()
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes() - before
