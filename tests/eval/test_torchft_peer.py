"""torchft's DiLoCo against ours: two implementations of one method."""

from __future__ import annotations

import pytest

from caat.parallel.mesh import Mesh
from caat.training.engine import Engine
from conf.bench import BenchIslandsConfig
from conf.islands import IslandsConfig
from eval.speed.replicas import LR, OPTIM, SEED, batches_of, model_of
from eval.speed.torchft_peer import torchft_diloco
from tests.models import SMALL


def losses_of_diloco(config: BenchIslandsConfig, steps: int) -> tuple[list[float], list[float]]:
    """Train an island on this rank with our engine, and one with torchft; return their losses by step."""
    mesh, batches = Mesh.create(1, 1, islands=config.replicas), batches_of(config)
    islands = IslandsConfig("diloco", every=config.every)
    how = {"stage": 1, "precision": "fp32", "accumulation": config.accumulation}
    engine = Engine(model_of(config, mesh), mesh, OPTIM, **how, islands=islands, seed=SEED)
    ours = []
    for step in range(1, steps + 1):
        ours.append(engine.step(batches, LR).loss)
        engine.outer_step(step)
    theirs = torchft_diloco(config)
    return ours, [theirs.step() for _ in range(steps)]


def test_diloco_trains_like_torchfts(ranks):
    config = BenchIslandsConfig(model=SMALL, codecs=["none"], micro_batch=2, every=3, island_delay=1)
    ours, theirs = ranks(2).run(losses_of_diloco, config, 10)[0]
    # The third exchange is after the ninth step.
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours[-1] < 0.9 * ours[0]
