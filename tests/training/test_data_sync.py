"""Optimizer steps whose gradients and weights travel by slices or through codecs, at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from caat.parallel.mesh import Mesh
from caat.training.engine import Engine
from conf.data_sync import DataSyncConfig
from conf.optim import OptimConfig
from layers.gpt import GPT
from tests.models import SMALL, batch
from tests.reference import random_weights

STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
ACCUMULATION, LR = 2, 3e-3
OPTIM = OptimConfig(lr=LR, clip=0.3, weight_decay=0.1, eps=1e-3)


def engine_of(mesh: Mesh, stage: int, precision: str) -> Engine:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weights = random_weights(SMALL)
    model = GPT.empty(SMALL, mesh, 0.5, dtype=dtype).fill(lambda name, _: weights[name])
    return Engine(model, mesh, OPTIM, stage=stage, precision=precision, accumulation=ACCUMULATION)


def micro_batches(mesh: Mesh, step: int):
    return [batch(seed=100 * step + 10 * mesh.data_rank + micro) for micro in range(ACCUMULATION)]


def master(engine: Engine) -> torch.Tensor:
    """The float32 weights of this process's shards, on every replica."""
    parts = []
    for name, parameter in engine.model.named_parameters():
        whole = torch.zeros(getattr(parameter, "ds_numel", parameter.numel()))
        fragment = engine.live.fragments()[name, "weight"]
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


def trained(mesh: Mesh, stage: int, precision: str, steps: int = 3):
    """Weights, gradient norms, whether replicas are alike, and bytes of gradients and weights of a step."""
    engine = engine_of(mesh, stage, precision)
    norms = []
    for step in range(steps):
        mesh.data.ledger.reset()
        norms.append(engine.step(micro_batches(mesh, step), LR).grad_norm)
    sent = mesh.data.ledger.totals("gradients", "weights")
    return master(engine), norms, alike(engine), (sent["bytes_gradients"], sent["bytes_weights"])


def plainly(mesh: Mesh) -> Mesh:
    """The mesh with DeepSpeed's messages left to gloo, and only counted."""
    mesh.data.zero = None
    return mesh


def by_slices(processes: int) -> list:
    found = []
    for stage, precision in STAGES:
        plain = trained(plainly(Mesh.create(2, processes)), stage, precision)
        found.append(((stage, precision), plain, trained(Mesh.create(2, processes), stage, precision)))
    return found


@pytest.mark.parametrize(("world", "processes"), [(2, 1), (4, 2), (4, 1)])
def test_slices_give_the_backends_sums_for_half_the_bytes(ranks, world, processes):
    two = world // processes == 2
    for (stage, precision), plain, slices in ranks(world).run(by_slices, processes)[0]:
        case = f"stage {stage} {precision}"
        if two:
            assert torch.equal(slices[0], plain[0]) and slices[1] == plain[1], case
        else:
            assert torch.allclose(slices[0], plain[0], rtol=0, atol=2e-6 if precision == "fp32" else 2e-3), case
        assert plain[2] and slices[2], case
        assert slices[3][1] == plain[3][1], case
        saves = stage > 0 and (stage, precision) != (1, "bf16")
        assert slices[3][0] == (pytest.approx(plain[3][0] / 2, abs=64) if saves else plain[3][0]), case
