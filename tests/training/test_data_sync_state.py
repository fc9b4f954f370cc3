"""What messages between replicas keep from step to step: resumed, and dropped after a skipped step."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from caat.training.checkpoint.reading import load_master_weights, load_optimizer
from caat.training.engine import Engine
from layers.full_tensors import full_tensors
from tests.models import SMALL
from tests.training.replicas import LR, OPTIM, engine_of, master, mesh_of, micro_batches
from tests.training.test_checkpoint import saver, state


def resumed(
    folder: Path, stage: int, precision: str, codec: str, weights: str, **model
) -> tuple[bool, list, list]:
    """Whether a resumed run continues bit for bit; notes of a run with the same and with other settings."""
    mesh = mesh_of(1, codec, weights)
    engine = engine_of(mesh, stage, precision, **model)
    for step in range(2):
        mesh.data.start_step(step)
        engine.step(micro_batches(mesh, step), LR)
    saver(folder, engine, model.get("ratio", 0.5)).save(state(2))
    wanted = [engine_step(engine, step) for step in (2, 3)]
    path = folder / "checkpoints" / "step-00000002"
    while not path.exists():
        time.sleep(0.01)
    dist.barrier()
    outcomes = []
    others = [mesh_of(1)]
    if model.get("ratio") == 1:
        others.append(mesh_of(1, codec, weights, shards=4))
    for again in (mesh_of(1, codec, weights), *others):
        engine = engine_of(again, stage, precision, path, **model)
        load_master_weights(engine.live, full_tensors(engine.model), path)
        notes = load_optimizer(engine.live, full_tensors(engine.model), path)
        outcomes.append((notes, [engine_step(engine, step) for step in (2, 3)]))
    (notes, found), *others = outcomes
    return found == wanted, notes, [notes for notes, _ in others]


def engine_step(engine: Engine, step: int) -> tuple:
    engine.mesh.data.start_step(step)
    result = engine.step(micro_batches(engine.mesh, step), LR)
    return result.loss, result.grad_norm, master(engine).double().sum().item()


@pytest.mark.parametrize(
    ("stage", "precision", "codec", "weights"),
    [
        (1, "fp32", "int4", "int8"),
        (1, "bf16", "powersgd:2", "int4"),
        (2, "fp32", "topk:0.05", "bfloat16"),
        (3, "bf16", "sign", "none"),
    ],
)
def test_what_codecs_keep_is_resumed_bit_for_bit(ranks, tmp_path, stage, precision, codec, weights):
    same, notes, others = ranks(2).run(resumed, tmp_path, stage, precision, codec, weights)[0]
    assert same and notes == []
    for (note,) in others:
        assert "starts anew" in note and f"codec={codec}" in note


@pytest.mark.parametrize(
    ("stage", "weights", "optimizer"),
    [(1, "int8", "adamw"), (0, "none", "lamb"), (2, "none", "lamb"), (3, "none", "lamb")],
)
def test_a_padded_vocabulary_and_other_shards(ranks, tmp_path, stage, weights, optimizer):
    """`sign` decodes zeros to other numbers; other shards hold the weights in another order."""
    model = {"config": SMALL, "ratio": 1.0, "optim": replace(OPTIM, name=optimizer, eps=1e-8)}
    same, notes, others = ranks(2).run(partial(resumed, **model), tmp_path, stage, "fp32", "sign", weights)[0]
    assert same and notes == [] and len(others) == 2
    for (note,) in others:
        assert "starts anew" in note and "shards=2 vocabulary=62" in note


def skipped(codec: str) -> tuple[bool, bool, bool]:
    engine = engine_of(mesh_of(1, codec), 1, "fp32")
    zero = engine.mesh.data.zero
    assert zero is not None and zero.gradients.feedback is not None
    engine_step(engine, 0)
    kept, before = bool(zero.gradients.feedback.residuals), master(engine)
    with torch.no_grad():
        # A gradient that overflows on one replica only.
        weight = engine.model.blocks[0].attention_norm.weight if engine.mesh.data_rank else None
        hook = weight.register_hook(lambda g: g * torch.inf) if weight is not None else None
    result = engine.step(micro_batches(engine.mesh, 1), LR)
    if hook:
        hook.remove()
    unchanged = torch.equal(master(engine), before) and not zero.gradients.feedback.residuals
    return kept, result.skipped and unchanged, not engine.step(micro_batches(engine.mesh, 2), LR).skipped


@pytest.mark.parametrize("codec", ["int8", "topk:0.05"])
def test_a_skipped_step_is_skipped_everywhere_and_leaves_nothing(ranks, codec):
    assert ranks(2).run(skipped, codec) == [(True, True, True)] * 2
