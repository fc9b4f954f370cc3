"""`caat convert` rejects bad input: it names the file or setting, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from caat.data.tokenizer import train_tokenizer
from caat.training.checkpoint import files
from launch.convert import main
from tests.layers.huggingface.llamas import write_llama


def edit(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder: Path, **changes) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


WRONG = {
    "another type": (
        lambda f: edit(f, model_type="gemma2"),
        'model_type="gemma2" is not supported: give .* llama, mistral, qwen2, qwen3',
    ),
    "scaled rope": (
        lambda f: edit(f, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 8}),
        r'rope_parameters="longrope" .* not support: give .* linear, dynamic, llama3, yarn',
    ),
    "old scaled rope": (
        lambda f: edit(f, rope_scaling={"type": "ntk", "factor": 2}),
        r'rope_scaling="ntk" is a scaling',
    ),
    "rope without a factor": (
        lambda f: edit(f, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8}),
        r"rope_parameters is llama3 and has no low_freq_factor: give",
    ),
    "rope of some channels": (
        lambda f: edit(f, rope_scaling={"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}),
        r"partial_rotary_factor=0.5 rotates only some channels",
    ),
    "shorter rope": (
        lambda f: edit(f, rope_scaling={"type": "linear", "factor": 0.5}),
        r"rope_scaling.factor=0.5 must be at least 1",
    ),
    "attention bias": (
        lambda f: edit(f, attention_bias=True),
        "attention_bias=true means a bias of attention's output too",
    ),
    "mlp bias": (lambda f: edit(f, mlp_bias=True), "mlp_bias=true means biases in the MLP"),
    "another activation": (lambda f: edit(f, hidden_act="gelu"), 'hidden_act="gelu" is not silu'),
    "another head_dim": (
        lambda f: edit(f, head_dim=8),
        r"q_proj.weight has shape \(32, 32\) where config.json means \(64, 32\)",
    ),
    "quantised": (
        lambda f: edit(f, quantization_config={}),
        "quantization_config=.* means quantised weights",
    ),
    "no config": (lambda f: (f / "config.json").write_text("{"), r"config.json is not JSON"),
    "half a config": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama"}'),
        "has no num_hidden_layers",
    ),
    "no heads": (lambda f: edit(f, num_attention_heads=0), "num_attention_heads=0, which must be greater"),
    "text for a number": (lambda f: edit(f, hidden_size="32"), 'hidden_size="32", which must be a valid int'),
    "list for a mapping": (lambda f: edit(f, rope_scaling=[1]), r"rope_scaling=\[1\], which must be"),
    "half a number": (lambda f: edit(f, max_position_embeddings=64.5), "max_position_embeddings=64.5, which"),
    "text for yes or no": (lambda f: edit(f, tie_word_embeddings="no"), 'tie_word_embeddings="no", which'),
    "a window of a family without the switch": (
        lambda f: edit(f, model_type="mistral", use_sliding_window=False, sliding_window=8),
        "sliding_window=8 limits how far tokens attend",
    ),
    "a window": (lambda f: edit(f, sliding_window=8), "sliding_window=8 limits how far tokens attend"),
    "Mistral's usual window": (
        lambda f: edit(f, model_type="mistral"),
        "sliding_window=4096 limits how far tokens attend",
    ),
    "Qwen2's window": (
        lambda f: edit(f, model_type="qwen2", use_sliding_window=True, sliding_window=8),
        "sliding_window=8 limits how far tokens attend",
    ),
    "a number of 400 digits": (
        lambda f: edit(f, vocab_size=10**399),
        "vocab_size=1000.*, which must be",
    ),
    "pickled": (pickled, r"holds pickled weights \(.bin\)"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no model.safetensors"),
    "damaged weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        r"model.safetensors is missing or damaged",
    ),
    "missing tensor": (
        lambda f: change_tensors(f, model__layers__1__mlp__down_proj__weight=None),
        r"has no tensor model.layers.1.mlp.down_proj.weight",
    ),
    "extra tensor": (
        lambda f: change_tensors(f, model__layers__0__self_attn__q_proj__bias=torch.zeros(32)),
        r"has 1 tensors that do not belong to a model with its config.json, such as .*q_proj.bias",
    ),
    "wrong shape": (
        lambda f: change_tensors(f, model__norm__weight=torch.ones(31)),
        r"model.norm.weight has shape \(31,\) where config.json means \(32,\)",
    ),
    "nan": (
        lambda f: change_tensors(f, model__norm__weight=torch.full((32,), torch.nan)),
        r"model.norm.weight holds nan or inf",
    ),
    "whole numbers": (
        lambda f: (
            edit(f, tie_word_embeddings=True),
            change_tensors(f, model__norm__weight=torch.ones(32, dtype=torch.int8)),
        ),
        r"model.norm.weight is I8, and only F32, BF16, F16",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "holds no tokenizer: put its tokenizer.model or",
    ),
    "larger tokenizer": (
        lambda f: edit(f, vocab_size=399),
        r"has shape|has 400 pieces, but the model has only",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_and_nothing_written(name, tmp_path):
    spoil, says = WRONG[name]
    write_llama(tmp_path / "hf")
    spoil(tmp_path / "hf")
    with pytest.raises(ValueError, match=says) as error:
        main([f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2"])
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_tokenizer_with_more_pieces_than_the_model(tmp_path):
    write_llama(tmp_path / "hf", vocab_size=399)
    with pytest.raises(ValueError, match=r"has 400 pieces, but the model has only vocab_size=399"):
        main([f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["from=nowhere", "to=new", "parallel.tensor=2"], "from=nowhere is not a folder"),
        (["from=empty", "to=new", "parallel.tensor=2"], "holds no checkpoint"),
        (["from=hf", "to=hf", "parallel.tensor=2"], "to=hf exists and is not an empty folder"),
        (["from=hf", "to=new"], "parallel.tensor is required"),
        (["from=hf", "to=new", "parallel.tensor=3"], r"model.heads=8 is not divisible by parallel.tensor=3"),
        (["from=hf", "to=new", "parallel.tensor=0"], "parallel.tensor=0 must be above 0"),
        (["from=hf", "to=new", "parallel.tensor=2", "sync.ratio=2"], "sync.ratio=2.0 is outside"),
        (
            ["from=ours", "to=new", "parallel.tensor=2"],
            "parallel.tensor=2 is for a model that comes from",
        ),
        (["from=ours", "to=new", "sync.ratio=0.5"], "sync.ratio=0.5 is for a model that comes from"),
        (["to=new"], "from is required"),
        (["from=hf"], "to is required"),
    ],
)
def test_mistakes(settings, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "hf")
    (tmp_path / "empty").mkdir()
    main(["from=hf", "to=ours", "parallel.tensor=4"])
    with pytest.raises(ValueError, match=says):
        main(settings)
    assert not Path("new").exists()


def test_an_empty_folder_that_is_not_free(tmp_path, monkeypatch):
    write_llama(tmp_path / "hf")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"to=\. is the folder that you are in"):
        main([f"from={tmp_path / 'hf'}", "to=.", "parallel.tensor=2"])
    with pytest.raises(ValueError, match="to=/proc"):
        main([f"from={tmp_path / 'hf'}", "to=/proc", "parallel.tensor=2"])


def test_a_head_in_a_type_that_is_not_read(tmp_path):
    write_llama(tmp_path / "hf", tie_word_embeddings=True)
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"lm_head.weight is F8_E4M3, and only .* are read"):
        main([f"from={tmp_path / 'hf'}", f"to={tmp_path / 'new'}", "parallel.tensor=2"])


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    write_llama(tmp_path / "hf")
    ours, back = tmp_path / "ours", tmp_path / "back"
    main([f"from={tmp_path / 'hf'}", f"to={ours}", "parallel.tensor=2"])
    data = bytearray((ours / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (ours / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        main([f"from={ours}", f"to={back}"])
    (ours / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        main([f"from={ours}", f"to={back}"])
    assert not back.exists() and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "config.json", "tokenizer.model"]
)
def test_a_checkpoint_with_another_small_file_is_not_exported(tmp_path, name):
    """A changed or added file, even if valid, is not what the model was trained with."""
    write_llama(tmp_path / "hf")
    ours = tmp_path / "ours"
    main([f"from={tmp_path / 'hf'}", f"to={ours}", "parallel.tensor=2"])
    if name == "tokenizer.model":
        train_tokenizer((f"line {i} says {i * i}" for i in range(500)), 280, ours / name)
        says = "tokenizer.model is not a file of this checkpoint"
    else:
        (ours / name).write_bytes((ours / name).read_bytes() + b"\n")
        says = f"{name} is damaged: its content does not match the checksum"
    with pytest.raises(ValueError, match=says):
        main([f"from={ours}", f"to={tmp_path / 'back'}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "ours"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    write_llama(tmp_path / "hf")

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    settings = [f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2"]
    monkeypatch.setattr(files.TensorFile, "append", full)
    with pytest.raises(
        ValueError, match=r"could not be written .No space left on device.: no files are left"
    ):
        main(settings)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(ValueError, match=r"takes \d\.\d MB, but 0\.0 MB are free: make room"):
        # Before the channels are measured, which takes long.
        main([*settings, "order=missing.txt"])
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
