"""Damaged checkpoints: found by all ranks, and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from xxhash import xxh3_128

from caat.parallel.mesh import Mesh
from caat.storage import checksums
from caat.storage.durable import write_bytes
from caat.supervision.control import Control
from caat.training.checkpoint.folder import find
from caat.training.checkpoint.reading import damage, load_weights
from caat.training.checkpoint.state import write_checksums
from caat.training.checkpoint.tokenizer import checked_tokenizer
from eval.open import load_model
from layers.full_tensors import full_tensors
from tests.training.test_checkpoint import edit_config, verify, write


@pytest.fixture
def saved(ranks, tmp_path) -> Path:
    ranks(1).run(write, tmp_path, 4, 1, 0.5, 1, 1, 2**26)
    return find(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 64), "missing or damaged"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json has no num_hidden_layers"),
        (lambda f: (f / "config.json").write_text("[]"), r"config.json holds \[\], which must be an object"),
        (lambda f: edit_config(f, caat=None), "has no caat: is it a caat checkpoint"),
        (lambda f: edit_config(f, hidden_size="32"), 'hidden_size="32", which must be a valid integer'),
        (lambda f: edit_config(f, num_hidden_layers=2.0), "num_hidden_layers=2.0, which must be"),
        (lambda f: edit_config(f, bos_token_id=True), "bos_token_id=true, which must be"),
        (lambda f: edit_config(f, rms_norm_eps=10**400), "rms_norm_eps=1000.*, which must be"),
        (lambda f: edit_config(f, hidden_size=64), "shared_channels=.* are 32: it was changed by hand"),
        (
            lambda f: index(f, {"lm_head.weight": 3}),
            "has weight_map.lm_head.weight=3, which must be",
        ),
        (lambda f: index(f, None), "index.json has weight_map=null, which must be"),
        (
            lambda f: index(f, {"lm_head.weight": "weights.safetensors"}),
            "has no tensor lm_head.weight, as the",
        ),
        (lambda f: shutil.rmtree(f), "is not a folder"),
    ],
)
def test_damage_is_named(saved, damage, message):
    """Also where no checksum tells of it."""
    (saved / "state.json").unlink()
    damage(saved)
    with pytest.raises(ValueError, match=message):
        load_model(find(saved), Mesh(4))


def index(folder: Path, changes: dict | None) -> None:
    """Several files behind an index, which says what ``changes`` says; the head is in none of them."""
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    (folder / "model.safetensors").unlink()
    where = dict.fromkeys(found, "weights.safetensors")
    del found["lm_head.weight"]
    save_file(found, folder / "weights.safetensors")
    weight_map = None if changes is None else {**where, **changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_checksums_match(saved):
    state = json.loads((saved / "state.json").read_text())
    for name, digest in state["xxh3_128"].items():
        assert xxh3_128((saved / name).read_bytes()).hexdigest() == digest
    assert set(state["xxh3_128"]) == {p.name for p in saved.iterdir()} - {"state.json"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.exp_avg_sq.safetensors", "config.json", "state.json"]
)
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_every_damaged_file_is_found_by_all_ranks(ranks, saved, name, how):
    assert ranks(2).run(verify, saved) == [[], []]
    path = saved / name
    if how == "flipped":
        flip(path)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-1] if name != "state.json" else b"{")
    else:
        path.unlink()
    first, second = ranks(2).run(verify, saved)
    assert first == second and len(first) == 1 and name in first[0]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_was_changed_is_not_used(tmp_path, name):
    names = "tokenizer.json", "tokenizer_config.json"
    write_checksums(tmp_path, {each: write_bytes(tmp_path / each, b"{}") for each in names})
    assert checked_tokenizer(tmp_path) == tmp_path / "tokenizer.json"
    (tmp_path / name).write_bytes(b"[]")
    with pytest.raises(ValueError, match=f"{name} is damaged: its content does not match the checksum"):
        checked_tokenizer(tmp_path)
    (tmp_path / name).unlink()
    says = "holds no tokenizer" if name == names[0] else f"{name} cannot be read .No such file"
    with pytest.raises(ValueError, match=says):
        checked_tokenizer(tmp_path)


def test_reading_ticks_by_block_and_by_parameter(saved, monkeypatch):
    monkeypatch.setattr(checksums, "HASHED_BYTES", 1000)
    ticks = []
    assert damage(saved, Control(), tick=lambda: ticks.append(1)) == []
    sizes = [path.stat().st_size for path in saved.iterdir() if path.name != "state.json"]
    assert len(ticks) == sum(-(-size // 1000) for size in sizes)
    ticks.clear()
    model = load_model(saved, Mesh(4))
    load_weights(model, full_tensors(model), range(4), saved, lambda: ticks.append(1))
    assert len(ticks) == len(list(model.parameters()))


def test_nothing_is_unpickled(saved):
    """And the tensors of a file begin at a multiple of 8 bytes, as safetensors writes them."""
    assert {path.suffix for path in saved.iterdir()} == {".safetensors", ".json", ".model"}
    for path in saved.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            assert len(tensors.keys()) > 0
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
