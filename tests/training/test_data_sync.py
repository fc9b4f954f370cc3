"""Optimizer steps whose gradients and weights travel by slices or through codecs, at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from caat.compression import make_codec
from caat.parallel.mesh import Mesh
from caat.supervision.control import Control
from caat.supervision.replicas import ReplicaGuard
from caat.training.engine import Engine
from layers.gpt import GPT
from tests.models import batch
from tests.training.replicas import (
    ACCUMULATION,
    EVEN,
    LR,
    OPTIM,
    STAGES,
    alike,
    engine_of,
    master,
    mesh_of,
    micro_batches,
)


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


def by_slices(processes: int, stages: list) -> list:
    found = []
    for stage, precision in stages:
        plain = trained(plainly(Mesh.create(2, processes)), stage, precision)
        found.append(((stage, precision), plain, trained(Mesh.create(2, processes), stage, precision)))
    return found


@pytest.mark.parametrize(("processes", "stages"), [(2, STAGES), (1, [(1, "fp32"), (3, "bf16")])])
def test_slices_give_the_backends_sums_for_half_the_bytes(ranks, processes, stages):
    two = processes == 2
    for (stage, precision), plain, slices in ranks(4).run(by_slices, processes, stages)[0]:
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
        self.model = GPT.empty(EVEN, mesh, 0.5)
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


def against_reference(stage: int) -> list:
    mesh = mesh_of(2, f"threshold:{THRESHOLD}")
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
def test_a_codec_with_feedback_is_one_process_that_compresses(ranks, stage):
    """A codec of single numbers, so that the result does not depend on DeepSpeed's order of messages."""
    *steps, same = ranks(4).run(against_reference, stage)[0]
    assert same
    for error, norm, wanted, kept in steps:
        assert error < 2e-6 and norm == pytest.approx(wanted, rel=1e-5)
        assert kept > 0.1 * wanted


def codecs_at_work(cases: list) -> list:
    """Some steps of each case: whether replicas are alike, how far their weights are, bytes of weights."""
    found = []
    for stage, precision, codec, weights in cases:
        mesh = mesh_of(1, codec, weights)
        engine = engine_of(mesh, stage, precision)
        guard = ReplicaGuard(engine.model, engine.model.blocks[-1], mesh, Control(), every=2)
        for step in range(3):
            mesh.data.start_step(step)
            guard.before(step)
            result = engine.step(micro_batches(mesh, step), LR)
            # Raises an error if replicas differ.
            guard.after(step)
        sent = mesh.data.ledger.sent["step", "weights"]
        distance, numbers = None, []
        if weights != "none":
            assert mesh.data.zero is not None
            held = torch.cat([p.detach().view(-1).float() for p in engine.model.parameters()])
            distance = (held - master(engine)).abs().max().item()
            numbers = [len(each) for each in mesh.data.zero.weights.held]
        found.append((alike(engine), result.loss, distance, sent, numbers))
    return found


def test_replicas_are_alike_with_every_kind_of_codec_and_compressed_weights(ranks):
    codecs = ("int8", "topk:0.05,index=huffman", "powersgd:2", "sign")
    # Each kind where replicas need all sums, and where owners do; each stage with one kind or more.
    cases = [(stage, "fp32", codec, "none") for stage in (0, 2) for codec in codecs]
    cases += [
        (1, "bf16", "int4", "none"),
        (2, "bf16", "topk:0.05", "none"),
        (3, "bf16", "powersgd:2", "none"),
    ]
    cases += [(1, "fp32", "int8", "int8"), (1, "bf16", "int8", "int4"), (2, "bf16", "int8", "int8")]
    results = zip(*ranks(2).run(codecs_at_work, cases), strict=True)
    for case, ((same, loss, distance, sent, numbers), other) in zip(cases, results, strict=True):
        assert same and 3 < loss < 5 and other[1] == loss, case
        if case[3] != "none":
            # A step of AdamW moves a weight by about LR, of which the codec loses half a level at most.
            # bfloat16 rounds weights of norms, which are about 1, by up to 1 / 256, before and after.
            levels = 127 if case[3] == "int8" else 7
            assert 0 < distance < 3 * LR / levels + (0 if case[1] == "fp32" else 1 / 128), case
            assert sent == sum(make_codec(case[3]).size(n) for n in numbers), case


def of_low_rank(cases: list, rank: int) -> list:
    """The norms of gradients of ``rank`` at most, exact and through PowerSGD; the columns that it factors."""
    found = []
    for stage, precision in cases:
        for codec in ("none", f"powersgd:{rank}"):
            mesh = mesh_of(1, codec)
            engine = engine_of(mesh, stage, precision)
            # Two tokens. Shards have gradients of their own, in the same matrix.
            assert mesh.shards * mesh.data_size * ACCUMULATION * 2 == rank
            seeds = [10 * mesh.data_rank + micro for micro in range(ACCUMULATION)]
            norm = engine.step([batch(seed, 1, 2) for seed in seeds], LR).grad_norm
            assert mesh.data.zero is not None
            factors = mesh.data.zero.gradients.codec.memory().values()
            found.append((norm, sum(map(len, factors)) / rank))
    matrices = [p for p in GPT.empty(EVEN, mesh, 0.5).parameters() if p.dim() == 2]
    return [*found, sum(matrix.shape[1] for matrix in matrices)]


def test_powersgd_sees_the_matrices_of_the_parameters(ranks):
    """At the rank of their gradients nothing is lost; of a gradient cut at other places, most would be."""
    cases = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32")]
    *found, columns = ranks(2).run(of_low_rank, cases, 16)[0]
    for case, (norm, _), (same, factored) in zip(cases, found[::2], found[1::2], strict=True):
        # bfloat16 rounds gradients before they are sent, which adds a part of full rank.
        assert same == pytest.approx(norm, rel=1e-5 if case[1] == "fp32" else 1e-2), case
        assert factored == columns, case


def drifted_apart(codec: str) -> list[tuple]:
    found = []
    for stage, precision in STAGES:
        engine = engine_of(mesh_of(2, codec), stage, precision)
        for step in range(2):
            engine.step(micro_batches(engine.mesh, step), LR)
        norm = engine.live.fragments()["norm.weight", "weight"].numbers.contiguous()
        every = [torch.empty_like(norm) for _ in range(2)]
        dist.all_gather(every, norm, group=engine.mesh.tensor.group)
        found += [] if torch.equal(*every) else [(stage, precision)]
    return found


def test_replicated_weights_stay_equal_on_tensor_parallel_processes(ranks):
    """top-k keeps a number or not depending on the rest of the message, which is not replicated."""
    assert not any(ranks(4).run(drifted_apart, "topk:0.2"))
