"""Islands at their edges: the last step, a save in flight, and a step that one of them skips."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist

from caat.parallel.mesh import Mesh
from caat.training.islands.kept import OWN_WEIGHT
from conf.data_sync import DataSyncConfig
from conf.islands import IslandsConfig
from conf.optim import OptimConfig
from tests.training.replicas import master
from tests.training.test_island_methods import ISLANDS, METHODS
from tests.training.test_islands import LR, data, engine_of, trained


def at_the_end(settings: IslandsConfig, optim: OptimConfig, stage: int, precision: str) -> tuple:
    """The weights that the model computes with after the last step, the anchor, and whether it is known."""
    engine = engine_of(Mesh.create(4, 1, islands=ISLANDS), settings, stage, precision, optim=optim)
    for step in range(4):
        engine.step(data(step, engine.mesh.replica), optim.lr)
        engine.outer_step(step + 1, last=step == 3)
    # A run that goes on begins at the anchor, not where eager steps had looked ahead.
    assert all(message.origin is None for message in engine.live.islands.messages)
    weights = torch.cat([p.detach().flatten().clone() for p in engine.model.parameters()])
    return weights, master(engine).to(weights.dtype), engine.live.islands.together


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (1, "bf16")])
@pytest.mark.parametrize("method", ["eager", "slamb", "dcs3gd"])
def test_after_the_last_step_all_models_are_the_anchor(ranks, method, stage, precision):
    settings, optim, _, _ = METHODS[method]
    found = ranks(2).run(at_the_end, settings, optim, stage, precision)
    for weights, anchor, together in found:
        assert together and torch.equal(weights, anchor) and torch.equal(weights, found[0][0])


def late_end() -> bool:
    """Whether the anchor moves by the exchange in flight alone if the last step comes before its end."""
    settings = IslandsConfig("diloco", every=3, delay=2, lr=0.7, momentum=0.9)
    engine = engine_of(Mesh.create(4, 1, islands=ISLANDS), settings, 1)
    trained(engine, range(3))
    islands = engine.live.islands
    islands.wait()
    expected = []
    for message in islands.messages:
        mean = message.own.clone()
        dist.all_reduce(mean)
        expected.append(message.anchor - 0.7 * (1 + 0.9) * mean / ISLANDS)
    engine.step(data(3, engine.mesh.replica), LR)
    outer = engine.outer_step(4, last=True)
    pairs = zip(islands.messages, expected, strict=True)
    return outer.norm > 0 and islands.together and all(torch.allclose(m.anchor, e) for m, e in pairs)


def test_an_exchange_in_flight_is_the_last_one(ranks):
    """Another one would have no changes, and move the anchor by momentum alone."""
    assert ranks(2).run(late_end) == [True, True]


def validated(at: set[int]) -> tuple[torch.Tensor, bool]:
    """The weights of a run that gathers changes in int4, and whether it validates at its anchor."""
    data_sync = DataSyncConfig(weights_codec="int4")
    mesh = Mesh.create(4, 1, islands=ISLANDS, data_sync=data_sync)
    engine, exact = engine_of(mesh, IslandsConfig("average", every=3), 1), True
    for step in range(5):
        engine.step(data(step, engine.mesh.replica), LR)
        engine.outer_step(step + 1)
        if step in at:
            with engine.evaluating():
                named = {name: p.detach().flatten() for name, p in engine.model.named_parameters()}
                for message in engine.live.islands.messages:
                    for name, part in zip(message.weights, message.split(message.anchor), strict=True):
                        start = engine.live.places()[name].start
                        exact &= torch.equal(named[name][start : start + len(part)], part)
    return torch.cat([p.detach().flatten() for p in engine.model.parameters()]), exact


def test_validation_is_at_the_anchor_and_leaves_rounded_weights_as_they_were(ranks):
    """Weights travel as changes in int4: moving to the anchor and back would round twice."""
    without, often = ranks(4).run(validated, set()), ranks(4).run(validated, {0, 1, 3})
    for (weights, _), (same, exact) in zip(without, often, strict=True):
        assert exact and torch.equal(weights, same)


def kept_in_flight(settings: IslandsConfig) -> tuple[dict, dict]:
    """What a save keeps as soon as an exchange has begun, and once it has ended."""
    engine = engine_of(Mesh.create(4, 1, islands=ISLANDS), settings)
    for message in engine.live.islands.messages:
        if message.reduction is not None:
            message.reduction.everywhere = partial(slowly, message.reduction.everywhere)
    trained(engine, range(2))
    kept = engine.live.islands.kept
    early = {name: values.clone() for name, values in kept.tensors().items()}
    engine.live.islands.wait()
    return early, kept.tensors()


def slowly(exchange: Callable, *arguments, **named) -> None:
    time.sleep(0.3)
    exchange(*arguments, **named)


@pytest.mark.parametrize("codec", ["int8", "powersgd:2"])
def test_a_save_waits_for_what_an_exchange_in_flight_remembers(ranks, codec):
    settings = IslandsConfig("average", every=2, delay=1, codec=codec)
    for early, late in ranks(2).run(kept_in_flight, settings):
        assert early.keys() == late.keys() and len(early) > 2
        assert all(torch.equal(early[name], late[name]) for name in early)


def with_a_bad_gradient(settings: IslandsConfig, optim: OptimConfig) -> tuple:
    """One island skips a step; the other goes on."""
    mesh = Mesh.create(4, 1, islands=ISLANDS)
    engine = engine_of(mesh, settings, 2, optim=optim)
    moved, skipped = [], []
    for step in range(4):
        before = master(engine, OWN_WEIGHT)
        bad = engine.model.norm.weight.register_hook(lambda g: g * torch.inf) if step == 2 else None
        if bad is not None and mesh.island == 1:
            bad.remove()
        skipped.append(engine.step(data(step, mesh.replica), LR).skipped)
        if bad is not None and mesh.island == 0:
            bad.remove()
        moved.append(not torch.equal(before, master(engine, OWN_WEIGHT)))
        engine.outer_step(step + 1, last=step == 3)
    return mesh.island, moved, skipped, master(engine)


@pytest.mark.parametrize("method", ["slamb", "dcs3gd"])
def test_an_island_that_skips_a_step_leaves_the_others_alone(ranks, method):
    settings, optim, _, _ = METHODS[method]
    by_rank = ranks(4).run(with_a_bad_gradient, settings, optim)
    for island, moved, skipped, weights in by_rank:
        assert skipped == [False, False, True, False]
        assert moved == [True, True, island == 1, True]
        assert torch.isfinite(weights).all() and torch.equal(weights, by_rank[0][3])
