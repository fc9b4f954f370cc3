"""Engines of several replicas, for tests of what they send each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.reading import load_weights
from caat.training.engine import Engine
from conf.data_sync import DataSyncConfig
from conf.model import ModelConfig
from conf.optim import OptimConfig
from layers.full_tensors import full_tensors
from layers.gpt import GPT
from tests.models import SMALL, batch
from tests.reference import random_weights

STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
# Without padding of the vocabulary: plain models that these are compared with have none.
EVEN = replace(SMALL, vocab_size=64)
ACCUMULATION, LR = 2, 3e-3
OPTIM = OptimConfig(lr=LR, clip=0.3, weight_decay=0.1, eps=1e-3)


def engine_of(
    mesh: Mesh,
    stage: int,
    precision: str,
    folder: Path | None = None,
    *,
    config: ModelConfig = EVEN,
    ratio: float = 0.5,
    optim: OptimConfig = OPTIM,
) -> Engine:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weights = random_weights(config)
    model = GPT.empty(config, mesh, ratio, dtype=dtype)
    if folder is None:
        model.fill(lambda name, _: weights[name])
    else:
        load_weights(model, full_tensors(model), mesh.local_shards, folder)
    return Engine(model, mesh, optim, stage=stage, precision=precision, accumulation=ACCUMULATION)


def micro_batches(mesh: Mesh, step: int):
    return [batch(seed=100 * step + 10 * mesh.data_rank + micro) for micro in range(ACCUMULATION)]


def master(engine: Engine, kind: str = "weight") -> torch.Tensor:
    """The float32 weights, or another kind, of this process's shards, on every replica.

    With islands, `weight` is the anchor, and `island_weight` are the island's own weights.
    """
    parts = []
    for name, parameter in engine.model.named_parameters():
        whole = torch.zeros(getattr(parameter, "ds_numel", parameter.numel()))
        fragment = engine.live.fragments()[name, kind]
        if fragment.size:
            whole[fragment.start : fragment.start + fragment.size] = fragment.numbers.float()
        if engine.stage:
            dist.all_reduce(whole, group=engine.mesh.data.group)
        parts.append(whole)
    return torch.cat(parts)


def alike(engine: Engine) -> bool:
    """Whether the model computes the same bits on all replicas."""
    x, y = batch(seed=7)
    with torch.no_grad(), engine.evaluating() as forward:
        losses = forward(x, y).float().contiguous()
    every = [torch.empty_like(losses) for _ in range(engine.mesh.data_size)]
    dist.all_gather(every, losses, group=engine.mesh.data.group)
    return all(torch.equal(losses, each) for each in every)


def mesh_of(
    processes: int, codec: str = "none", weights: str = "none", feedback: bool = True, shards: int = 2
) -> Mesh:
    settings = DataSyncConfig(codec=codec, feedback=feedback, weights_codec=weights)
    return Mesh.create(shards, processes, data_sync=settings, seed=5)
