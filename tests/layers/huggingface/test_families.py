"""`caat convert` of the families that people bring, both ways, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from caat.parallel.mesh import Mesh
from eval.open import load_model
from launch.convert import main as convert
from tests.layers.huggingface.llamas import prompt, write_family

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# transformers' class, what differs from a small Llama, and the class of the export.
FAMILIES: dict[str, tuple[str, dict, str]] = {
    "llama of another head size": ("Llama", dict(head_dim=12), "Llama"),
    # Without its window it is a Llama.
    "mistral": ("Mistral", dict(head_dim=12, sliding_window=None), "Llama"),
    "mistral of odd heads": (
        "Mistral",
        dict(num_attention_heads=6, num_key_value_heads=2, head_dim=12, sliding_window=None),
        "Mistral",
    ),
    "qwen2": ("Qwen2", {}, "Qwen2"),
    "llama 3.2": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LLAMA3), "Llama"),
    "tied qwen2": ("Qwen2", dict(tie_word_embeddings=True), "Qwen2"),
    "qwen3": ("Qwen3", dict(head_dim=12), "Qwen3"),
}


@torch.no_grad()
def our_logits(folder: Path, shards: int, tokens: torch.Tensor) -> torch.Tensor:
    model = load_model(folder, Mesh(shards))
    return model.head.after_norm(model.hidden(tokens))[1][..., : model.config.vocab_size]


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(tmp_path, family):
    kind, changes, exported = FAMILIES[family]
    theirs = write_family(tmp_path / "hf", kind, **changes)
    with torch.no_grad():
        want = theirs(prompt()).logits
    for shards in {1, 2, theirs.config.num_key_value_heads}:
        ours = tmp_path / f"ours-{shards}"
        convert([f"from={tmp_path / 'hf'}", f"to={ours}", f"parallel.tensor={shards}"])
        torch.testing.assert_close(our_logits(ours, shards, prompt()), want, rtol=0, atol=1e-5)
    convert([f"from={ours}", f"to={tmp_path / 'back'}"])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(again) is getattr(transformers, f"{exported}ForCausalLM")
    if changes.get("tie_word_embeddings"):
        assert "lm_head.weight" not in load_file(tmp_path / "back" / "model.safetensors")
        assert again.lm_head.weight is again.model.embed_tokens.weight
    weights = theirs.state_dict()
    assert again.state_dict().keys() == weights.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, weights[name]), name
    with torch.no_grad():
        torch.testing.assert_close(again(prompt()).logits, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_below_ratio_one(tmp_path, family):
    """The exported code computes what our layers do, and its folder is read again."""
    kind, changes, _ = FAMILIES[family]
    shards = write_family(tmp_path / "hf", kind, **changes).config.num_key_value_heads
    ours, back, again = (tmp_path / name for name in ("ours", "back", "again"))
    convert([f"from={tmp_path / 'hf'}", f"to={ours}", f"parallel.tensor={shards}", "sync.ratio=0.5"])
    convert([f"from={ours}", f"to={back}"])
    model = transformers.AutoModelForCausalLM.from_pretrained(back, trust_remote_code=True)
    with torch.no_grad():
        got = model(prompt()).logits
    torch.testing.assert_close(got, our_logits(ours, shards, prompt()), rtol=0, atol=1e-5)
    model.save_pretrained(again)
    for path in back.glob("tokenizer*"):
        (again / path.name).write_bytes(path.read_bytes())
    convert([f"from={again}", f"to={tmp_path / 'once more'}"])
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "once more")
    )
    assert first == second
