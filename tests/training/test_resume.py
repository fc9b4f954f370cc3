"""Training stopped and resumed is training never stopped: bit by bit on the same layout, else nearly."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.folder import find
from caat.training.checkpoint.reading import load_master_weights, load_optimizer, load_weights
from caat.training.checkpoint.state import read_state
from caat.training.engine import Engine
from caat.training.schedule import learning_rate
from conf.optim import OptimConfig
from layers.full_tensors import full_tensors
from tests.models import batch, build
from tests.training.test_checkpoint import differing, saver, state, whole_state

# The checkpoint is in the middle of the warm-up, or of the decay.
OPTIM = OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=4, clip=0.5)
LAMB = replace(OPTIM, name="lamb")
SGD = replace(OPTIM, name="sgd", lr=1.0)
STEPS, GLOBAL_BATCH, MICRO_BATCH = 8, 4, 1


def steps(engine: Engine, first: int, last: int, optim: OptimConfig) -> list[float]:
    """Losses of these steps, on this replica's part of the same global batches at every layout."""
    share = GLOBAL_BATCH // engine.mesh.data_size
    offset = engine.mesh.data_rank * share
    return [
        engine.step(
            [batch(seed=GLOBAL_BATCH * step + offset + i, size=MICRO_BATCH) for i in range(share)],
            learning_rate(step, STEPS, optim),
        ).loss
        for step in range(first, last + 1)
    ]


def engine_on(mesh: Mesh, model, stage: int, precision: str, optim: OptimConfig) -> Engine:
    return Engine(
        model, mesh, optim, stage=stage, precision=precision, accumulation=GLOBAL_BATCH // mesh.data_size
    )


def uninterrupted(
    folder: Path,
    shards: int,
    processes: int,
    ratio: float,
    stage: int,
    precision: str,
    at: int,
    optim: OptimConfig = OPTIM,
):
    """Losses of all steps and the state at the end; a checkpoint is saved after step ``at``."""
    mesh = Mesh.create(shards, processes)
    engine = engine_on(mesh, build(mesh, ratio, dtype=torch.float32), stage, precision, optim)
    losses = steps(engine, 1, at, optim)
    writer = saver(folder, engine, ratio)
    writer.save(state(at))
    losses += steps(engine, at + 1, STEPS, optim)
    writer.wait()
    return losses, whole_state(engine)


def resumed(
    folder: Path,
    shards: int,
    processes: int,
    ratio: float,
    stage: int,
    precision: str,
    optim: OptimConfig = OPTIM,
    notes: tuple[str, ...] = (),
):
    """Losses from the checkpoint on, and the state at the end; ``notes`` are what loading says."""
    mesh = Mesh.create(shards, processes)
    model = build(mesh, ratio, dtype=torch.float32)
    tensors = full_tensors(model)
    load_weights(model, tensors, mesh.local_shards, folder)
    engine = engine_on(mesh, model, stage, precision, optim)
    load_master_weights(engine.live, tensors, folder)
    assert load_optimizer(engine.live, tensors, folder) == list(notes)
    assert engine.live.optimizer.steps == read_state(folder)[0].step
    return steps(engine, read_state(folder)[0].step + 1, STEPS, optim), whole_state(engine)


@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")]
)
def test_the_same_layout_continues_bit_by_bit(ranks, tmp_path, stage, precision, at):
    want = ranks(4).run(uninterrupted, tmp_path, 4, 2, 0.5, stage, precision, at)
    got = ranks(4).run(resumed, find(tmp_path), 4, 2, 0.5, stage, precision)
    for (all_losses, end), (losses, resumed_end) in zip(want, got, strict=True):
        assert losses == all_losses[at:]
        assert differing(resumed_end, end) == []


@pytest.mark.parametrize(
    ("optim", "stage", "precision"),
    [(SGD, 1, "fp32"), (SGD, 3, "bf16"), (LAMB, 1, "bf16"), (LAMB, 2, "fp32")],
    ids=lambda value: getattr(value, "name", value),
)
def test_other_optimizers_continue_bit_by_bit(ranks, tmp_path, optim, stage, precision):
    want = ranks(4).run(uninterrupted, tmp_path, 4, 2, 0.5, stage, precision, 5, optim)
    got = ranks(4).run(resumed, find(tmp_path), 4, 2, 0.5, stage, precision, optim)
    for (all_losses, end), (losses, resumed_end) in zip(want, got, strict=True):
        assert losses == all_losses[5:]
        assert differing(resumed_end, end) == []


def test_momentum_that_only_one_of_two_runs_has(ranks, tmp_path):
    """Plain SGD resumes a run with momentum, and the other way round. Both say so."""
    plain, place = replace(SGD, momentum=0.0), (2, 2, 0.5, 1, "fp32")
    for name, saved, run, note in (
        ("with", SGD, plain, "momentum_buffer in {} is not used: this run keeps none"),
        ("without", plain, SGD, "momentum_buffer starts from zero: {} does not hold it"),
    ):
        (tmp_path / name).mkdir()
        ranks(2).run(uninterrupted, tmp_path / name, *place, 5, saved)
        folder = find(tmp_path / name)
        kinds = {path.name for path in folder.glob("*.safetensors")}
        assert ("optimizer.momentum_buffer.safetensors" in kinds) == (saved is SGD)
        notes = (f"the optimizer's {note.format(folder)}",)
        same = ranks(2).run(resumed, folder, *place, run, notes)
        assert all(isfinite(loss) for losses, _ in same for loss in losses)


# World, P and stage, from a checkpoint of 4 ranks, P = 2, stage 1.
@pytest.mark.parametrize(
    ("world", "processes", "stage"), [(1, 1, 0), (2, 1, 2), (2, 2, 3), (4, 4, 1), (4, 1, 3), (4, 2, 0)]
)
def test_another_layout_continues_within_rounding(ranks, tmp_path, world, processes, stage):
    all_losses, end = ranks(4).run(uninterrupted, tmp_path, 4, 2, 0.5, 1, "fp32", 5)[0]
    for losses, resumed_end in ranks(world).run(resumed, find(tmp_path), 4, processes, 0.5, stage, "fp32"):
        assert losses == pytest.approx(all_losses[5:], abs=2e-6)
        for name, tensor in end["exp_avg"].items():
            torch.testing.assert_close(resumed_end["exp_avg"][name], tensor, rtol=1e-3, atol=1e-7)


def test_bfloat16_continues_on_another_layout(ranks, tmp_path):
    all_losses, _ = ranks(4).run(uninterrupted, tmp_path, 4, 2, 0.5, 1, "bf16", 5)[0]
    for losses, _ in ranks(2).run(resumed, find(tmp_path), 4, 2, 0.5, 2, "bf16"):
        assert losses == pytest.approx(all_losses[5:], rel=2e-2)


def test_at_ratio_one_the_shards_may_change(ranks, tmp_path):
    all_losses, _ = ranks(2).run(uninterrupted, tmp_path, 2, 2, 1.0, 1, "fp32", 5)[0]
    for shards, world in ((8, 4), (1, 1)):
        for losses, _ in ranks(world).run(resumed, find(tmp_path), shards, world, 1.0, 1, "fp32"):
            assert losses == pytest.approx(all_losses[5:], abs=2e-6)
