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


def mesh_of(processes: int, codec: str = "none", weights: str = "none", feedback: bool = True) -> Mesh:
    settings = DataSyncConfig(codec=codec, feedback=feedback, weights_codec=weights)
    return Mesh.create(2, processes, data_sync=settings, seed=5)


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
            assert torch.allclose(slices[0], plain[0], rtol=0, atol=2e-6 if precision == "fp32" else 2e-3), (
                case
            )
        assert plain[2] and slices[2], case
        assert slices[3][1] == plain[3][1], case
        saves = stage > 0 and (stage, precision) != (1, "bf16")
        assert slices[3][0] == (pytest.approx(plain[3][0] / 2, abs=64) if saves else plain[3][0]), case


THRESHOLD = 0.01


class Reference:
    """The training of all replicas in one process: plain autograd, thresholds by hand, torch's AdamW."""

    def __init__(self, engine: Engine) -> None:
        self.engine, mesh = engine, engine.mesh
        self.model = GPT.empty(SMALL, mesh, 0.5)
        names = dict(self.model.named_parameters())
        groups = [
            {"params": [p for p in names.values() if (p.dim() > 1) is decayed]} for decayed in (True, False)
        ]
        groups[1]["weight_decay"] = 0.0
        self.adamw = torch.optim.AdamW(
            groups, lr=LR, betas=tuple(OPTIM.betas), eps=OPTIM.eps, weight_decay=OPTIM.weight_decay
        )
        self.numbers = sum(p.numel() for p in names.values())
        self.residuals = torch.zeros(mesh.data_size, self.numbers)
        # Which replica owns each number; at stage 0 none does.
        mine = torch.cat([self._owned(name, p.numel()) for name, p in names.items()])
        self.owner = (
            torch.stack(self._gathered(mine)).float() if engine.stage else torch.zeros(mesh.data_size, 1)
        )

    def _owned(self, name: str, numbers: int) -> torch.Tensor:
        fragment, owned = self.engine.live.fragments()[name, "weight"], torch.zeros(numbers)
        owned[fragment.start : fragment.start + fragment.size] = 1
        return owned

    def _gathered(self, mine: torch.Tensor) -> list[torch.Tensor]:
        every = [torch.empty_like(mine) for _ in range(self.engine.mesh.data_size)]
        dist.all_gather(every, mine, group=self.engine.mesh.data.group)
        return every

    def step(self, start: torch.Tensor, batches) -> tuple[torch.Tensor, float]:
        """One step from the weights ``start``: the new weights, and the norm of the gradient."""
        parameters = list(self.model.parameters())
        pieces = start.split([p.numel() for p in parameters])
        for parameter, values in zip(parameters, pieces, strict=True):
            parameter.data.copy_(values.view_as(parameter))
        gradients = []
        for x, y in batches:
            self.model.zero_grad()
            (self.model(x, y).mean() / len(batches)).backward()
            gradients.append(torch.cat([p.grad.view(-1) for p in parameters]))
        once, size = self.engine.stage in (0, 1), self.engine.mesh.data_size
        messages = [sum(gradients)] if once else gradients
        divided = size if self.engine.stage else 1
        total = torch.zeros(self.numbers)
        for message in messages:
            for rank, each in enumerate(self._gathered(message / divided)):
                whole = each + self.residuals[rank]
                sent = torch.where(whole.abs() >= THRESHOLD, whole, 0.0)
                owned = self.owner[rank] > 0
                self.residuals[rank] = torch.where(owned, self.residuals[rank], whole - sent)
                total += torch.where(owned, each, sent)
        total *= divided / size
        square = torch.zeros(())
        for parameter, values in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = values.view_as(parameter).clone()
            square += values.square().sum() * (1 if parameter.dim() > 1 else 1 / self.engine.mesh.processes)
        if self.engine.mesh.processes > 1:
            dist.all_reduce(square, group=self.engine.mesh.tensor.group)
        norm = float(square.sqrt())
        for parameter in parameters:
            parameter.grad *= min(1.0, OPTIM.clip / norm)
        self.adamw.step()
        return torch.cat([p.detach().view(-1) for p in parameters]), norm


def against_reference(processes: int, stage: int) -> list:
    mesh = mesh_of(processes, f"threshold:{THRESHOLD}")
    engine = engine_of(mesh, stage, "fp32")
    reference, found = Reference(engine), []
    for step in range(3):
        start, batches = master(engine), micro_batches(mesh, step)
        wanted, norm = reference.step(start, batches)
        result = engine.step(batches, LR)
        error = (master(engine) - wanted).abs().max().item()
        found.append((error, result.grad_norm, norm, reference.residuals.norm().item()))
    return [*found, alike(engine)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_codec_with_feedback_is_one_process_that_compresses(ranks, stage, processes):
    """A codec of single numbers, so that the result does not depend on DeepSpeed's order of messages."""
    *steps, same = ranks(2 * processes).run(against_reference, processes, stage)[0]
    assert same
    for error, norm, wanted, kept in steps:
        assert error < 2e-6 and norm == pytest.approx(wanted, rel=1e-5)
        assert kept > 0.1 * wanted
