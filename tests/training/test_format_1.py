"""A checkpoint as caat wrote it before format 2 is read as the code of that time read it.

The folder format_1 was written by the code of commit e830534 after three steps of the model below, with two
shards on one process at ZeRO stage 1. That code then took two more steps, whose losses are ``LOSSES``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.reading import load_master_weights, load_optimizer, load_weights
from caat.training.checkpoint.saver import Saver
from caat.training.checkpoint.state import read_optimizer, read_state
from caat.training.engine import Engine
from conf.model import ModelConfig
from conf.optim import OptimConfig
from conf.schema import CheckpointConfig
from eval.open import load_model
from layers.full_tensors import full_tensors
from tests.models import batch, build
from tests.training.test_checkpoint import KINDS, differing, on_disk, verify, whole_state

FORMAT_1 = Path(__file__).parent / "format_1"
TINY = ModelConfig(layers=1, hidden=16, ffn=16, heads=2, kv_heads=2, vocab_size=61, sequence=16)
LOSSES = [4.3180131912231445, 4.61967658996582]


def resumed(folder: Path, again: Path | None, stage: int, precision: str):
    """The state after loading, the losses of two more steps; ``again``: saved there before them."""
    mesh = Mesh.create(2, 1)
    model = build(mesh, 0.5, dtype=torch.float32, config=TINY)
    tensors = full_tensors(model)
    load_weights(model, tensors, mesh.local_shards, folder)
    engine = Engine(model, mesh, OptimConfig(), stage=stage, precision=precision, accumulation=1)
    load_master_weights(engine.live, tensors, folder)
    assert load_optimizer(engine.live, tensors, folder) == []
    state, steps = whole_state(engine), engine.live.optimizer.steps
    if again is not None:
        architecture = read_architecture(folder)
        settings = CheckpointConfig(asynchronous=False)
        Saver(
            again,
            tensors,
            lambda: architecture,
            folder / "tokenizer.model",
            live=engine.live,
            settings=settings,
        ).save(read_state(folder)[0])
    return state, steps, [engine.step([batch(seed=seed)], 1e-2).loss for seed in (4, 5)]


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (3, "bf16")])
def test_format_1_is_resumed(ranks, tmp_path, stage, precision):
    """To the same losses, and what is saved of it in format 2 is the same state."""
    assert "format" not in json.loads((FORMAT_1 / "state.json").read_text())
    want = {kind: on_disk(FORMAT_1, kind) for kind in KINDS}
    ((state, steps, losses),) = ranks(1).run(resumed, FORMAT_1, tmp_path / "c", stage, precision)
    assert steps == 3 and differing(state, want) == []
    assert losses == pytest.approx(LOSSES, abs=1e-6 if precision == "fp32" else 2e-2)
    ((state, steps, again),) = ranks(1).run(resumed, tmp_path / "c" / "step-00000003", None, stage, precision)
    assert steps == 3 and again == losses and differing(state, want) == []


def test_all_else_reads_it(tmp_path):
    assert verify(FORMAT_1) == []
    model = load_model(FORMAT_1, Mesh(2))
    tokens, targets = batch(seed=4)
    # The loss of a step is that of the weights before it.
    assert model(tokens, targets).mean().item() == pytest.approx(LOSSES[0], abs=1e-6)
    found = read_optimizer(FORMAT_1)
    assert (found.name, found.steps, [kind.name for kind in found.kinds]) == ("adamw", 3, list(KINDS[1:]))


def test_a_later_format_is_refused(tmp_path):
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"format": 3, "xxh3_128": {}, "state_xxh3_128": ""}))
    with pytest.raises(ValueError, match=r"format=3, but this version of caat reads formats up to 2: use"):
        read_state(tmp_path)
