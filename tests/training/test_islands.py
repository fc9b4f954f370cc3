"""Outer steps of islands against one plain process that trains a model for each island."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from caat.compression import make_codec
from caat.parallel.mesh import Mesh
from caat.planning.island_traffic import exchange_bytes
from caat.planning.layouts import Layout
from caat.training.checkpoint.reading import load_master_weights, load_optimizer, load_weights
from caat.training.engine import Engine
from conf.islands import IslandsConfig
from conf.model import ModelConfig
from conf.optim import OptimConfig
from conf.processes import ParallelConfig
from conf.schema import Config
from layers.full_tensors import full_tensors
from tests.models import batch, build
from tests.training.replicas import EVEN, master
from tests.training.test_checkpoint import saver, state

LR = 3e-3
# No clipping by a norm, so that a plain process needs none; see OPTIM in test_engine.py for eps.
OPTIM = OptimConfig(lr=LR, clip=0.0, weight_decay=0.1, eps=1e-3)
STEPS = 6
DILOCO = IslandsConfig("diloco", every=2, lr=0.7, momentum=0.9)


def data(step: int, replica: int):
    return [batch(seed=100 * step + replica)]


def some_targets(step: int, replica: int):
    """The later the replica, the fewer of its targets count."""
    tokens, targets = batch(seed=100 * step + replica)
    return [(tokens, targets.index_fill(1, torch.arange(2 * replica), -100))]


def engine_of(
    mesh: Mesh,
    settings: IslandsConfig | None,
    stage: int = 0,
    precision: str = "fp32",
    checkpoint: Path | None = None,
    optim: OptimConfig = OPTIM,
    config: ModelConfig = EVEN,
    accumulation: int = 1,
) -> Engine:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build(mesh, 0.5, dtype=dtype, config=config)
    if checkpoint:
        load_weights(model, full_tensors(model), mesh.local_shards, checkpoint)
    how = {"stage": stage, "precision": precision, "accumulation": accumulation}
    return Engine(model, mesh, optim, **how, islands=settings, seed=3)


def anchor(engine: Engine) -> torch.Tensor:
    """The anchor of this process's shards, on every replica."""
    assert engine.live.islands is not None
    engine.live.islands.restart()
    return master(engine)


def trained(engine: Engine, steps: range = range(STEPS), *, same: bool = False) -> list:
    """Train; return what the outer steps did. ``same``: all islands read the same data."""
    outers = []
    for step in steps:
        replica = engine.mesh.data_rank if same else engine.mesh.replica
        engine.step(data(step, replica), LR)
        outers.append(engine.outer_step(step + 1))
    return outers


def on_islands(islands: int, processes: int, stage: int, precision: str, settings: IslandsConfig):
    mesh = Mesh.create(4, processes, islands=islands, island_route=settings.route)
    engine = engine_of(mesh, settings, stage, precision)
    outers = trained(engine)
    sent = mesh.islands.ledger.totals("changes")["bytes_changes"]
    return anchor(engine), [(o.norm, o.distance) for o in outers], sent


def plainly(processes: int, replicas: int, settings: IslandsConfig, precision: str = "fp32"):
    """The same in one process per shard group: two models, a loop, and the formulas of the paper."""
    models = []
    for _ in range(2):
        mesh = Mesh.create(4, processes)
        models.append(engine_of(mesh, None, 0, precision))
    anchors = master(models[0]).clone()
    velocity, pending = torch.zeros_like(anchors), []
    for step in range(STEPS):
        for island, engine in enumerate(models):
            engine.step(data(step, island * replicas + engine.mesh.data_rank), LR)
        flats = [master(engine) for engine in models]
        if pending and step + 1 == pending[0][0] + settings.delay:
            anchors, velocity = outer(settings, anchors, velocity, pending.pop(0)[1], models)
        if (step + 1) % settings.every == 0:
            pending.append((step + 1, torch.stack([anchors - flat for flat in flats]).mean(0)))
            if settings.delay == 0:
                anchors, velocity = outer(settings, anchors, velocity, pending.pop(0)[1], models)
    return anchors


def outer(settings: IslandsConfig, anchors, velocity, change, models):
    velocity = settings.momentum * velocity + change
    anchors = anchors - settings.lr * (change + settings.momentum * velocity)
    for engine in models:
        parts = anchors.split([p.numel() for p in engine.model.parameters()])
        for parameter, part in zip(engine.model.parameters(), parts, strict=True):
            mixed = (1 - settings.alpha) * part + settings.alpha * parameter.detach().flatten()
            parameter.data.copy_(mixed.view_as(parameter))
    return anchors, velocity


def planned_config(settings: IslandsConfig, optimizer: str = "adamw", model: ModelConfig = EVEN) -> Config:
    """The settings of a run of a small model on two islands, for the planner."""
    parallel = ParallelConfig(tensor=4, islands=2)
    return Config(model=model, parallel=parallel, islands=settings, optim=OptimConfig(name=optimizer))


LATE = replace(DILOCO, every=3, delay=2, alpha=0.25)
SETTINGS = {0: DILOCO, 1: DILOCO, 2: LATE, 3: DILOCO}


@pytest.mark.parametrize(
    ("stage", "processes"),
    [(0, 2), (1, 1), (2, 2), (3, 2)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 2), (3, 1))],
)
def test_as_two_plain_models(ranks, stage, processes):
    replicas, settings = 2 // processes, SETTINGS[stage]
    ours = ranks(4).run(on_islands, 2, processes, stage, "fp32", settings)
    plain = ranks(2).run(plainly, processes, replicas, settings)
    for rank, (weights, outers, sent) in enumerate(ours):
        expected = plain[rank % 2]
        assert float((weights - expected).abs().max()) < 2e-6
        assert float((weights - ours[rank % 2][0]).abs().max()) == 0
        applied = [step for step, (norm, _) in enumerate(outers) if norm is not None]
        if rank % 2 == 0:
            layout = Layout(processes, replicas, stage, "none", 1, islands=2)
            assert sent == len(applied) * exchange_bytes(planned_config(settings), layout)
        due = [step for step in range(STEPS) if (step + 1 - settings.delay) % settings.every == 0]
        assert applied == [step for step in due if step + 1 > settings.delay]
        assert all(norm > 1e-3 and distance > 1e-3 for norm, distance in outers if norm is not None)


def test_two_islands_get_the_same_bits_along_a_schedule(ranks):
    scheduled = replace(LATE, schedule="auto", topology="ring:2")
    ours = ranks(4).run(on_islands, 2, 2, 1, "fp32", scheduled)
    plain = ranks(4).run(on_islands, 2, 2, 1, "fp32", LATE)
    for (weights, outers, _), (expected, same, _) in zip(ours, plain, strict=True):
        assert torch.equal(weights, expected) and outers == same
    planned = exchange_bytes(planned_config(scheduled), Layout(2, 1, 1, "none", 1, islands=2))
    assert ours[0][2] == planned * sum(norm is not None for norm, _ in ours[0][1]) > 0


def special_cases() -> dict[str, bool]:
    found = {}
    alone = engine_of(Mesh.create(4, 2), None, 1)
    for step in range(STEPS):
        alone.step(data(step, alone.mesh.data_rank), LR)
    for name, settings in {
        "average": IslandsConfig("average", every=2),
        "lr 1": IslandsConfig("diloco", every=3, lr=1.0, momentum=0.0),
    }.items():
        engine = engine_of(Mesh.create(4, 2), settings, 1)
        trained(engine)
        found[f"one island, {name}"] = torch.equal(anchor(engine), master(alone))
    # After a delay, what an island learned during it is lost, as on several islands.
    late = engine_of(Mesh.create(4, 2), IslandsConfig("average", every=3, delay=2), 1)
    trained(late, range(5))
    plain = engine_of(Mesh.create(4, 2), None, 1)
    for step in range(3):
        plain.step(data(step, plain.mesh.data_rank), LR)
    found["one island, delay"] = float((anchor(late) - master(plain)).abs().max()) < 1e-6
    momentum = IslandsConfig("diloco", every=2)
    one, two = engine_of(Mesh.create(4, 1), momentum, 2), engine_of(Mesh.create(4, 1, islands=2), momentum, 2)
    for step in range(4):
        for engine, replica in ((one, dist.get_rank() % 2), (two, dist.get_rank() % 2)):
            engine.step(data(step, replica), LR)
            engine.outer_step(step + 1)
    sgd = OptimConfig(name="sgd", lr=0.1, min_lr=0.0, clip=0.0)
    every_step = IslandsConfig("average", every=1)
    for what, batches in ("", data), (", of the targets that count", some_targets):
        replicas = engine_of(Mesh.create(4, 1), None, 1, optim=sgd)
        islands = engine_of(Mesh.create(4, 1, islands=2), every_step, 1, optim=sgd)
        for step in range(4):
            parts = [batches(step, replica) for replica in range(4)]
            counted = sum(int((targets != -100).sum()) for part in parts for _, targets in part)
            losses = []
            for engine in (replicas, islands):
                result = engine.step(parts[engine.mesh.replica], 0.1, counted if what else None)
                losses.append(result.loss)
                engine.outer_step(step + 1)
            found[f"loss {step}{what}"] = abs(losses[0] - losses[1]) < 1e-5
        off = float((anchor(islands) - master(replicas)).abs().max())
        found[f"SGD, averaged every step, is data parallelism{what}"] = off < 1e-6
    found["the same data on all islands"] = float((anchor(one) - anchor(two)).abs().max()) < 2e-6
    return found


def test_special_cases(ranks):
    """Four replicas of one island that read the data of two train as two islands that read the same."""
    for found in ranks(4).run(special_cases):
        assert all(found.values()), found


def with_codec(stage: int, precision: str, settings: IslandsConfig) -> tuple:
    mesh = Mesh.create(4, 2, islands=2)
    engine = engine_of(mesh, settings, stage, precision)
    sent = []
    for step in range(STEPS):
        engine.step(data(step, mesh.replica), LR)
        mesh.islands.ledger.reset()
        engine.outer_step(step + 1, last=step + 1 == STEPS)
        sent.append(mesh.islands.ledger.totals("changes")["bytes_changes"])
    islands = engine.live.islands
    held = sum(message.anchor.numel() for message in islands.messages)
    norms = [message.anchor for message in islands.messages if message.replicated]
    norm = engine.live.fragments()["norm.weight", "weight"].numbers
    factors = sum(2 * sum(p.shape) for p in engine.model.parameters() if p.dim() > 1)
    return anchor(engine), norm.clone(), sent, held, sum(map(len, norms)), master(engine), factors


@pytest.mark.parametrize(
    ("stage", "precision", "codec", "fragments"),
    [
        (1, "bf16", "int8", 2),
        (3, "fp32", "topk:0.1", 1),
        (2, "bf16", "none", 2),
        (1, "fp32", "powersgd:2", 1),
    ],
)
def test_codecs_and_fragments(ranks, stage, precision, codec, fragments):
    settings = IslandsConfig("diloco", every=3, codec=codec, fragments=fragments)
    planned = exchange_bytes(planned_config(settings), Layout(2, 1, stage, "none", 1, islands=2))
    by_rank = ranks(4).run(with_codec, stage, precision, settings)
    for rank, (weights, norm, sent, held, norms, held_by_island, factors) in enumerate(by_rank):
        assert torch.equal(weights, by_rank[rank % 2][0]), "the islands' anchors differ"
        assert torch.equal(norm, by_rank[0][1]), "a replicated weight differs between processes"
        assert torch.equal(held_by_island, weights), "after the last step, an island differs from the anchor"
        # Every number leaves once in every three steps, and once more at the end.
        due = [step for step in range(1, 7) if step % 3 == 0 or (fragments == 2 and step % 3 == 1)]
        assert [step for step in range(1, 7) if sent[step - 1]] == due
        if rank < 2:
            assert sent[5] == pytest.approx(planned, abs=0 if fragments == 1 else 64)
        if codec == "none":
            assert sent[0] + sent[2] == 4 * held and sent[5] == 4 * held
        elif codec == "powersgd:2":
            # One replica on an island holds whole matrices, so their own factors are sent.
            assert sent[5] == 4 * (factors + norms)
        elif codec == "int8":
            size = make_codec("int8").size(held - norms)
            assert sent[5] == pytest.approx(size + 4 * norms, abs=64 * fragments)


def resumed(folder: Path, stage: int, precision: str, settings: IslandsConfig) -> tuple:
    """Train on from a checkpoint in the middle of an exchange; also on other layouts."""
    # The second pass of a step is another one to ZeRO 3, which notes in the first what the modules use.
    accumulation = 2 if stage == 3 else 1

    def steps(engine: Engine, chosen: range) -> list[float]:
        losses = []
        for step in chosen:
            engine.mesh.data.start_step(step + 1)
            parts = [part for i in range(accumulation) for part in data(step + 50 * i, engine.mesh.replica)]
            losses.append(engine.step(parts, LR).loss)
            engine.outer_step(step + 1)
        return losses

    def run(engine: Engine, first: int) -> list[float]:
        losses = steps(engine, range(first, 6))
        return [*losses, master(engine).double().sum().item(), anchor(engine).double().sum().item()]

    engine = engine_of(Mesh.create(4, 1, islands=2), settings, stage, precision, accumulation=accumulation)
    steps(engine, range(4))
    saver(folder, engine, 0.5).save(state(4))
    saved = [message.anchor.clone() for message in engine.live.islands.messages]
    wanted, path = run(engine, 4), folder / "checkpoints" / "step-00000004"
    while not path.exists():
        time.sleep(0.01)
    dist.barrier()
    outcomes = []
    for islands, processes in ((2, 1), (4, 1), (1, 1), (2, 2)):
        mesh = Mesh.create(4, processes, islands=islands)
        again = engine_of(mesh, settings, stage, precision, path, accumulation=accumulation)
        tensors = full_tensors(again.model)
        load_master_weights(again.live, tensors, path)
        notes = load_optimizer(again.live, tensors, path, step=4)
        anchors = [message.anchor for message in again.live.islands.messages]
        same = all(torch.equal(each, other) for each, other in zip(anchors, saved, strict=True))
        outcomes.append((notes, same, run(again, 4)))
    return wanted, outcomes


@pytest.mark.parametrize(
    ("stage", "precision", "settings"),
    [
        (1, "bf16", replace(DILOCO, every=3, delay=2, codec="int8", alpha=0.5)),
        (3, "fp32", replace(DILOCO, every=3, fragments=2, eager=True)),
        (2, "fp32", IslandsConfig("dcs3gd", every=1)),
    ],
    ids=str,
)
def test_resuming(ranks, tmp_path, stage, precision, settings):
    for wanted, outcomes in ranks(4).run(resumed, tmp_path, stage, precision, settings):
        (notes, same, found), (more, _, _), (fewer, _, _), (apart, _, _) = outcomes
        assert notes == [] and same and found == wanted
        for changed in (more, fewer):
            assert any("island_weight starts from the common weights" in note for note in changed), changed
            assert any("exp_avg was saved by 2 islands" in note for note in changed), changed
        # The islands have as many weights, and each process others than it had.
        assert [note for note in apart if "starts anew" not in note] == []
        assert len(apart) == (settings.lag > 0)
