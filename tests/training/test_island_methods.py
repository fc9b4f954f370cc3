"""Eager outer steps, SLAMB and DC-S3GD against the papers' formulas on plain models in one process."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import Tensor

from caat.optim.slamb import draw_turns
from caat.parallel.mesh import Mesh
from caat.planning.island_traffic import momentum_bytes
from caat.planning.layouts import Layout
from caat.training.engine import Engine
from caat.training.islands.kept import OWN_WEIGHT
from conf.islands import IslandsConfig
from conf.optim import OptimConfig
from layers.weights import gpt_weights
from tests.models import build, gathered
from tests.training.replicas import EVEN, master
from tests.training.test_islands import DILOCO, LR, OPTIM, data, engine_of, planned_config, trained

ISLANDS = 2
# Biases are cut over the processes like matrices, without decay and trust ratio like norm weights.
BIASED = replace(EVEN, attention_bias=True)
EAGER = IslandsConfig("diloco", every=2, lr=0.7, momentum=0.9, eager=True)
SLAMB = IslandsConfig("slamb", every=3, rho=0.26, beta3=0.5)
DCS3GD = IslandsConfig("dcs3gd", every=1, lambda0=0.3)
# An island divides the mean momentum by its own second moment: a small eps would magnify rounding.
LAMB_OPTIM = OptimConfig(name="lamb", lr=LR, clip=0.0, weight_decay=0.1, betas=[0.9, 0.99], eps=3e-2)
SGD_OPTIM = OptimConfig(name="sgd", lr=0.1, clip=0.0, weight_decay=0.1, momentum=0.8)


def full(engine: Engine, flat: Tensor) -> dict[str, Tensor]:
    """The full tensors of this process's flat weights, on every process."""
    named = dict(engine.model.named_parameters())
    sizes = [getattr(p, "ds_numel", p.numel()) for p in named.values()]
    shapes = [tuple(getattr(p, "ds_shape", p.shape)) for p in named.values()]
    parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
    return gathered(engine.model, dict(zip(named, parts, strict=True)))


def ours(processes: int, stage: int, precision: str, settings: IslandsConfig, optim: OptimConfig, steps: int):
    """Train without the final exchange; return this island's weights, the anchor and what was sent."""
    mesh = Mesh.create(4, processes, islands=ISLANDS)
    engine = engine_of(mesh, settings, stage, precision, optim=optim, config=BIASED)
    sent = []
    for step in range(steps):
        mesh.islands.ledger.reset()
        engine.step(data(step, mesh.replica), optim.lr)
        engine.outer_step(step + 1)
        sent.append(mesh.islands.ledger.totals("changes", "momentum"))
    own = full(engine, master(engine, OWN_WEIGHT))
    engine.outer_step(steps, last=True)
    last = full(engine, master(engine))
    same = torch.equal(master(engine), master(engine, OWN_WEIGHT))
    return own, last, sent, same


class Plain:
    """Islands in one process: float32 models, and gradients by plain autograd."""

    def __init__(self, replicas: int) -> None:
        mesh = Mesh.create(4, 1)
        self.replicas = replicas
        self.models = [build(mesh, 0.5, dtype=torch.float32, config=BIASED) for _ in range(ISLANDS)]
        self.names = [name for name, _ in self.models[0].named_parameters()]

    def weights(self, island: int) -> list[Tensor]:
        return [p.detach() for p in self.models[island].parameters()]

    def gradients(self, island: int, step: int) -> list[Tensor]:
        model = self.models[island]
        model.zero_grad()
        for replica in range(self.replicas):
            for tokens, targets in data(step, island * self.replicas + replica):
                (model(tokens, targets).mean() / self.replicas).backward()
        return [p.grad.clone() for p in model.parameters()]

    def full(self, island: int) -> dict[str, Tensor]:
        model = self.models[island]
        return gathered(model, dict(zip(self.names, self.weights(island), strict=True)))


def mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0)


def plain_eager(replicas: int, steps: int) -> list[dict[str, Tensor]]:
    """Algorithm of arXiv 2502.12996: every island has an outer optimizer of its own, on mixed changes."""
    plain = Plain(replicas)
    inner = [
        torch.optim.AdamW(
            [
                {
                    "params": [p for p in model.parameters() if p.dim() > 1],
                    "weight_decay": OPTIM.weight_decay,
                },
                {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=LR,
            betas=tuple(OPTIM.betas),
            eps=OPTIM.eps,
        )
        for model in plain.models
    ]
    theta = [[w.clone() for w in plain.weights(island)] for island in range(ISLANDS)]
    velocity = [[torch.zeros_like(w) for w in each] for each in theta]
    last: list[list[Tensor]] = []
    for step in range(steps):
        for island, optimizer in enumerate(inner):
            for p, g in zip(plain.models[island].parameters(), plain.gradients(island, step), strict=True):
                p.grad = g
            optimizer.step()
        if (step + 1) % EAGER.every:
            continue
        change = [[a - w for a, w in zip(theta[i], plain.weights(i), strict=True)] for i in range(ISLANDS)]
        for island in range(ISLANDS):
            for k, weight in enumerate(plain.weights(island)):
                mixed = change[island][k] / ISLANDS
                if last:
                    mixed = mixed + mean([each[k] for each in last]) - last[island][k] / ISLANDS
                v = velocity[island][k].mul_(EAGER.momentum).add_(mixed)
                theta[island][k].sub_(EAGER.lr * (mixed + EAGER.momentum * v))
                weight.copy_(theta[island][k])
        last = change
    return [plain.full(island) for island in range(ISLANDS)]


def plain_dcs3gd(replicas: int, steps: int) -> list[dict[str, Tensor]]:
    """Algorithm 1 of arXiv 1911.02516, with torch's SGD as U."""
    plain, o = Plain(replicas), SGD_OPTIM
    momentum = [[torch.zeros_like(w) for w in plain.weights(island)] for island in range(ISLANDS)]
    deltas: list[list[Tensor]] = [[torch.zeros_like(w) for w in each] for each in momentum]
    for step in range(steps):
        new = []
        for island in range(ISLANDS):
            weights, gradients = plain.weights(island), plain.gradients(island, step)
            distance = [mean([d[k] for d in deltas]) - deltas[island][k] for k in range(len(weights))]
            corrections = [g * g * d for g, d in zip(gradients, distance, strict=True)]
            of_g, of_c = (
                sqrt(sum(float(t.double().square().sum()) for t in each)) for each in (gradients, corrections)
            )
            scale = DCS3GD.lambda0 * of_g / of_c if of_c else 0.0
            update = []
            for k, weight in enumerate(weights):
                decay = o.weight_decay if weight.dim() > 1 else 0.0
                g = gradients[k] + scale * corrections[k] + decay * (weight + distance[k])
                momentum[island][k].mul_(o.momentum).add_(g)
                update.append(-o.lr * momentum[island][k])
                weight.add_(distance[k] + update[k])
            new.append(update)
        deltas = new
    return [plain.full(island) for island in range(ISLANDS)]


def positions(plain: Plain) -> dict[str, tuple[int, Tensor]]:
    """For each full matrix, the parameter that holds it, and where, flat."""
    model, found = plain.models[0], {}
    counted = {
        name: torch.arange(p.numel(), dtype=torch.float64).view(p.shape)
        for name, p in model.named_parameters()
    }
    for weight in gpt_weights(model.config):
        for name in weight.names:
            found[name] = plain.names.index(weight.parameter)
    where = gathered(model, counted)
    return {name: (parameter, where[name].flatten().long()) for name, parameter in found.items()}


def plain_slamb(replicas: int, steps: int) -> list[dict[str, Tensor]]:
    """The authors' step (their repository, class Slamb) on full matrices."""
    plain, o, cycle = Plain(replicas), LAMB_OPTIM, int(1 / SLAMB.rho)
    modules = dict(plain.models[0].named_modules())
    turns = {}
    for k, (name, p) in enumerate(plain.models[0].named_parameters()):
        if p.dim() > 1:
            module = name.removesuffix(".weight")
            turns[k] = draw_turns(p.shape, modules[module].sharding.dim, range(4), f"3 {module}", cycle)
    matrices = positions(plain)
    m, v, since = [
        [[torch.zeros(w.numel()) for w in plain.weights(island)] for island in range(ISLANDS)]
        for _ in range(3)
    ]
    for step in range(1, steps + 1):
        for island in range(ISLANDS):
            for k, g in enumerate(plain.gradients(island, step - 1)):
                m[island][k].mul_(o.betas[0]).add_(g.flatten(), alpha=1 - o.betas[0])
                v[island][k].mul_(o.betas[1]).add_(g.flatten() ** 2, alpha=1 - o.betas[1])
        for k in range(len(plain.names)):
            now = turns[k] == step % cycle if k in turns else torch.ones(m[0][k].numel(), dtype=torch.bool)
            average = mean([m[island][k][now] for island in range(ISLANDS)])
            for island in range(ISLANDS):
                m[island][k][now] = average
                since[island][k] = (since[island][k] + 1) * ~now
        for island in range(ISLANDS):
            weights = plain.weights(island)
            u = [
                (m[island][k] / (1 - o.betas[0] ** step))
                / ((v[island][k] / (1 - o.betas[1] ** step)).sqrt() + o.eps)
                + (o.weight_decay * weight.flatten() if weight.dim() > 1 else 0.0)
                for k, weight in enumerate(weights)
            ]
            moves = {k: o.lr * u[k] for k, weight in enumerate(weights) if weight.dim() <= 1}
            for k, where in (each for each in matrices.values() if each[0] in turns):
                w, step_u = weights[k].flatten()[where], u[k][where]
                now = (turns[k] == step % cycle)[where]
                ratios = [
                    float(w[part].norm() / step_u[part].norm())
                    if part.any() and step_u[part].norm() > 0
                    else 1.0
                    for part in (now, ~now)
                ]
                s = SLAMB.beta3 ** since[island][k][where]
                size = o.lr * (s + (1 - s) / sqrt(ISLANDS)) * (s * ratios[0] + (1 - s) * ratios[1])
                moves.setdefault(k, torch.zeros(len(u[k])))[where] = size * step_u
            for k, weight in enumerate(weights):
                weight.sub_(moves[k].view(weight.shape))
        if step % SLAMB.every == 0:
            for k in range(len(plain.names)):
                average = mean([plain.weights(island)[k] for island in range(ISLANDS)])
                for island in range(ISLANDS):
                    plain.weights(island)[k].copy_(average)
    return [plain.full(island) for island in range(ISLANDS)]


METHODS = {
    "eager": (EAGER, OPTIM, plain_eager, 6),
    "slamb": (SLAMB, LAMB_OPTIM, plain_slamb, 5),
    "dcs3gd": (DCS3GD, SGD_OPTIM, plain_dcs3gd, 5),
}


@pytest.mark.parametrize(
    ("method", "processes", "stage"),
    [("eager", 2, 0), ("slamb", 1, 3), ("slamb", 2, 0), ("dcs3gd", 1, 1), ("dcs3gd", 2, 3)]
    + [
        pytest.param(method, processes, stage, marks=pytest.mark.slow)
        for method, processes, stage in (
            ("eager", 1, 2),
            ("eager", 1, 3),
            ("slamb", 1, 1),
            ("slamb", 1, 2),
            ("dcs3gd", 1, 0),
            ("dcs3gd", 1, 2),
        )
    ],
)
def test_as_the_papers_formulas(ranks, method, processes, stage):
    settings, optim, plainly, steps = METHODS[method]
    by_rank = ranks(4).run(ours, processes, stage, "fp32", settings, optim, steps)
    (wanted,) = ranks(1).run(plainly, 2 // processes, steps)
    for rank, (own, last, _, together) in enumerate(by_rank):
        expected = wanted[rank // 2]
        for name, weight in own.items():
            assert float((weight - expected[name]).abs().max()) < 2e-6, name
        assert together
        for name, weight in last.items():
            assert torch.equal(weight, by_rank[0][1][name]), f"{name} differs between islands at the end"
    if method == "slamb":
        check_slamb_bytes([sent for _, _, sent, _ in by_rank], processes, stage)


def check_slamb_bytes(sent: list[list[dict[str, float]]], processes: int, stage: int) -> None:
    """In a cycle, every number of a matrix is sent once; norm weights, biases and two counts in each step."""
    biases = BIASED.layers * (BIASED.heads + 2 * BIASED.kv_heads) * BIASED.head_size // processes
    vectors = (5 * BIASED.hidden + biases) // (2 // processes)
    cycle = int(1 / SLAMB.rho)
    layout = Layout(processes, 2 // processes, stage, "none", 1, islands=ISLANDS)
    # Shards are cut into turns one by one, and the plan is a mean over the turns.
    planned = momentum_bytes(planned_config(SLAMB, "lamb", BIASED), layout)
    assert sum(each["bytes_momentum"] for each in sent[0][:cycle]) / cycle == pytest.approx(planned, rel=1e-3)
    for by_step in sent:
        changes = [each["bytes_changes"] // 4 for each in by_step]
        assert [n > 0 for n in changes] == [step % SLAMB.every == 0 for step in range(1, len(changes) + 1)]
        momenta = [each["bytes_momentum"] // 4 for each in by_step]
        assert sum(momenta[:cycle]) == max(changes) - vectors + cycle * (vectors + 2)
        assert max(momenta) < 1.1 * sum(momenta[:cycle]) / cycle


def alone() -> dict[str, bool]:
    found = {}
    one = Mesh.create(4, 1)
    for name, settings, other, optim in (
        ("eager is diloco without a delay", EAGER, DILOCO, OPTIM),
        ("slamb is averaged lamb", SLAMB, IslandsConfig("average", every=3), LAMB_OPTIM),
        ("dcs3gd is sgd", DCS3GD, None, SGD_OPTIM),
    ):
        engines = [engine_of(one, each, 2, optim=optim) for each in (settings, other)]
        for engine in engines:
            trained(engine, range(4))
        kinds = [OWN_WEIGHT, OWN_WEIGHT if other else "weight"]
        ours, theirs = (master(engine, kind) for engine, kind in zip(engines, kinds, strict=True))
        off = (ours - theirs).abs().max()
        found[name] = float(off) < 1e-7
    engine = engine_of(one, replace(EAGER, momentum=0.0), 1, optim=OPTIM)
    trained(engine, range(2))
    kept = {name.rpartition(".")[2] for name in engine.live.islands.kept.tensors()}
    found["the origin is kept without momentum"] = kept == {"change", "own", "origin"}
    return found


def test_every_turn_has_as_many_numbers():
    for cycle in (10, 300, 500):
        counts = draw_turns((64, 128), 0, range(1), "3 mlp", cycle).bincount(minlength=cycle)
        assert len(counts) == cycle and counts.max() - counts.min() <= 1


def test_with_one_island(ranks):
    for found in ranks(2).run(alone):
        assert all(found.values()), found
