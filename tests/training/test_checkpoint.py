"""The checkpoint on disk: the same function at any process count, in our hands and in Hugging Face's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.training import checkpoint
from caat.training.engine import Engine
from conf.schema import OptimConfig
from eval.score import load_model, next_token_log_probabilities
from layers.linear import shared_channels
from tests.models import SMALL, batch, build
from tests.reference import random_weights, token_losses


def architecture(shards: int, ratio: float) -> checkpoint.Architecture:
    k = shared_channels(SMALL.hidden, ratio, shards)
    return checkpoint.Architecture(SMALL, shards, ratio, k, shards**0.5)


def write(folder: Path, shards: int, processes: int, ratio: float, stage: int):
    """A checkpoint of the reference's weights, as the engine of that layout saves it."""
    mesh = Mesh.create(shards, processes)
    model = build(mesh, ratio, dtype=torch.float32)
    engine = Engine(model, mesh, OptimConfig(), stage, "fp32", 1)
    tokenizer = folder / "t.model"
    if torch.distributed.get_rank() == 0:
        tokenizer.write_bytes(b"not looked into here")
    checkpoint.save(
        folder / "checkpoints",
        model.full_weights(engine.local_weight),
        architecture(shards, ratio),
        tokenizer,
        {"step": 7},
        torch.distributed.get_rank() == 0,
    )


def score(folder: Path, shards: int, processes: int):
    mesh = Mesh.create(shards, processes)
    text = torch.cat([batch()[0], batch()[1][:, -1:]], 1)
    return next_token_log_probabilities(load_model(folder, mesh), text)


@pytest.mark.parametrize(("stage", "ratio"), [(0, 0.5), (1, 0.25), (2, 1.0), (3, 0.5)])
def test_saved_anywhere_scored_anywhere(ranks, tmp_path, stage, ratio):
    ranks(4).run(write, tmp_path, 4, 2, ratio, stage)
    folder = checkpoint.find(tmp_path / "checkpoints")
    assert folder.name == "step-00000007"
    k = shared_channels(SMALL.hidden, ratio, 4)
    weights = {name: w.float().double() for name, w in random_weights(SMALL).items()}
    want = -token_losses(weights, SMALL, *batch(), 4, k)
    for world in (1, 2, 4):
        for got in ranks(world).run(score, folder, 4, world):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


def test_hugging_face_reads_ratio_one(ranks, tmp_path):
    transformers = pytest.importorskip("transformers")
    ranks(2).run(write, tmp_path, 2, 2, 1.0, 1)
    folder = checkpoint.find(tmp_path / "checkpoints")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens, targets = batch()
    with torch.no_grad():
        logits = theirs(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    ours = load_model(folder, Mesh(1))(tokens, targets)
    torch.testing.assert_close(ours.flatten(), loss, rtol=0, atol=1e-5)


def test_several_files_and_their_index(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 10_000)
    model = build(Mesh(4), 0.5, dtype=torch.float32)
    tokenizer = tmp_path / "t.model"
    tokenizer.write_bytes(b"x")
    local = model.full_weights(lambda name: model.get_parameter(name).detach())
    folder = checkpoint.save(tmp_path, local, architecture(4, 0.5), tokenizer, {"step": 1}, True)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    with torch.no_grad():
        torch.testing.assert_close(load_model(folder, Mesh(4))(*batch()), model(*batch()), rtol=0, atol=0)


@pytest.fixture
def saved(tmp_path):
    model = build(Mesh(4), 0.5, dtype=torch.float32)
    tokenizer = tmp_path / "t.model"
    tokenizer.write_bytes(b"x")
    local = model.full_weights(lambda name: model.get_parameter(name).detach())
    return checkpoint.save(tmp_path, local, architecture(4, 0.5), tokenizer, {"step": 1}, True)


def test_other_shards_are_refused(saved):
    with pytest.raises(ValueError, match=r"parallel.tensor=2, but the checkpoint was trained with 4 shards"):
        load_model(saved, Mesh(2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 64), "missing or damaged"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("{}"), "is it a caat checkpoint"),
        (lambda f: shutil.rmtree(f), "is not a folder"),
    ],
)
def test_damage_is_named(saved, damage, message):
    damage(saved)
    with pytest.raises(ValueError, match=message):
        load_model(checkpoint.find(saved), Mesh(4))


def test_checksums_match(saved):
    import hashlib

    state = json.loads((saved / "state.json").read_text())
    for name, digest in state["sha256"].items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == digest
    assert set(state["sha256"]) == {p.name for p in saved.iterdir()} - {"state.json"}
