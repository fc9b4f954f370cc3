"""`caat convert` in both directions: the same logits, the same tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

from caat.data.tokenizer import find_tokenizer, load_tokenizer
from caat.parallel.mesh import Mesh
from caat.supervision.control import Control
from caat.training.checkpoint import files
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.reading import damage
from caat.training.checkpoint.state import read_checksums, read_state, write_checksums
from eval.open import load_model
from eval.quality.score import next_token_log_probabilities
from launch.convert import main
from layers.huggingface.families import model_config, read_family
from tests.layers.huggingface.llamas import SIZES, prompt, write_llama
from tests.trained import MODEL, write_checkpoint

# Scaled for sequences of more than 4 tokens.
YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 4}

TEXTS = [
    "Document 7 says:  two spaces, 1234 digits\n\n\tand a tab",
    " leading space, trailing ",
    "Ünïcödé 日本語 \U0001f680 e\u0301 \ufb01",
    "<s> is text </s>",
    "",
]


def convert(*settings: str, capsys=None) -> dict:
    """Run the verb and return the result that it wrote."""
    main(list(settings))
    to = next(Path(text.removeprefix("to=")) for text in settings if text.startswith("to="))
    return json.loads((to / "conversion.json").read_text())


def same_scores(folder: Path, theirs, shards: int, atol: float = 1e-5) -> None:
    """The checkpoint's log-probabilities on N shards are those of the Hugging Face model."""
    tokens = prompt() % theirs.config.vocab_size
    with torch.no_grad():
        want = theirs(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    got = next_token_log_probabilities(load_model(folder, Mesh(shards)), tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("shards", "changes"),
    [
        (1, {}),
        (2, {"max_shard_size": "20KB"}),
        (4, {"tie_word_embeddings": True, "rope_parameters": YARN}),
        (4, {"dtype": torch.bfloat16}),
        (2, {"dtype": torch.float16, "num_key_value_heads": 8}),
    ],
)
def test_there_and_back(tmp_path, capsys, monkeypatch, shards, changes):
    if shards == 2:
        monkeypatch.setattr(files, "FILE_BYTES", 30_000)
    theirs = write_llama(tmp_path / "hf", **changes)
    ours, back = tmp_path / "ours", tmp_path / "back"
    result = convert(f"from={tmp_path / 'hf'}", f"to={ours}", f"parallel.tensor={shards}")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(ours / "conversion.json")
    tied = "tie_word_embeddings" in changes
    assert result["embeddings"].startswith("tied: one matrix" if tied else "untied")
    assert (len(list(ours.glob("model-*.safetensors"))) > 1) == (shards == 2)
    found = read_architecture(ours)
    assert (found.shards, found.ratio, found.bos, found.eos) == (shards, 1.0, 0, 1)
    # Llama's default; the tokenizer's is the first.
    assert found.ends == (1, 2)
    same_scores(ours, theirs, shards)
    assert set(read_checksums(ours)) == {path.name for path in ours.iterdir()} - {"state.json"}

    convert(f"from={ours}", f"to={back}")
    again = transformers.AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
    assert type(again) is transformers.LlamaForCausalLM
    config = json.loads((back / "config.json").read_text())
    assert "caat" not in config and config["eos_token_id"] == [1, 2]
    assert again.generation_config.eos_token_id == [1, 2]
    want = {name: value for name, value in theirs.state_dict().items()}
    for name, value in again.state_dict().items():
        assert torch.equal(value, want[name]), name
    with torch.no_grad():
        torch.testing.assert_close(again(prompt()).logits, theirs(prompt()).logits, rtol=0, atol=1e-5)
    same_tokens(back, ours)


def same_tokens(folder: Path, checkpoint: Path) -> None:
    """Compare AutoTokenizer on the exported folder with our tokenizer of the checkpoint."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(find_tokenizer(checkpoint))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ours.bos_id(), ours.eos_id())
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text), text
        assert tokenizer.decode(ids) == ours.decode(ids) == text


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_below_ratio_one_with_its_own_code(tmp_path, ratio, monkeypatch):
    # Collects the questions of transformers about running code.
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    write_llama(tmp_path / "hf", **({"rope_parameters": YARN} if ratio == 0.25 else {}))
    ours, back, again = tmp_path / "ours", tmp_path / "back", tmp_path / "again"
    convert(f"from={tmp_path / 'hf'}", f"to={ours}", "parallel.tensor=4", f"sync.ratio={ratio}")
    convert(f"from={ours}", f"to={back}")
    # Users must opt in to the code: otherwise nothing runs, and no Llama is loaded, which would be wrong.
    for plain in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
        with pytest.raises(KeyError, match="trust_remote_code=True"):
            plain.from_pretrained(back)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        back, trust_remote_code=True, dtype=torch.float32
    )
    assert "import caat" not in (back / "modeling_caat.py").read_text()
    same_scores(ours, model.eval(), 4)
    same_tokens(back, ours)
    assert not asked
    out = model.generate(prompt(), max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert out.shape == (2, 16)

    # After further training in transformers, the model can be imported again.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(prompt(), labels=prompt()).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "tuned")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(back / name, tmp_path / "tuned" / name)
    convert(f"from={tmp_path / 'tuned'}", f"to={again}")
    assert (read_architecture(again).ratio, read_architecture(again).shards) == (ratio, 4)
    same_scores(again, model, 4)
    with pytest.raises(ValueError, match=r"parallel.tensor=2, but .* was trained with 4"):
        main([f"from={tmp_path / 'tuned'}", f"to={tmp_path / 'other'}", "parallel.tensor=2"])


@pytest.mark.parametrize(("ratio", "norms"), [(1.0, False), (0.5, False), (0.5, True)])
def test_heads_that_do_not_divide_the_hidden_channels(tmp_path, ratio, norms):
    """Llama's class refuses them, Mistral's computes the same function."""
    odd = replace(MODEL, hidden=100, head_dim=8, qk_norm=norms)
    run = write_checkpoint(tmp_path / "run", 2, ratio, model=odd)
    write_checksums(run, {path.name: xxh3_128(path.read_bytes()).hexdigest() for path in run.iterdir()})
    convert(f"from={run}", f"to={tmp_path / 'hf'}")
    same_tokens(tmp_path / "hf", run)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", trust_remote_code=ratio < 1, dtype=torch.float32
    )
    assert type(model).__name__ == ("MistralForCausalLM" if ratio == 1 else "CaatForCausalLM")
    same_scores(run, model.eval(), 2)
    if ratio < 1:
        with pytest.raises(KeyError, match="trust_remote_code=True"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    shards = ["parallel.tensor=2"] if ratio == 1 else []
    convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'again'}", *shards)
    found = read_architecture(tmp_path / "again")
    assert (found.shards, found.ratio) == (2, ratio)
    assert replace(found.model, name="") == replace(read_architecture(run).model, name="")


def test_a_head_of_its_own_is_kept_whatever_the_flag_says(tmp_path):
    theirs = write_llama(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    result = convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    assert result["embeddings"].startswith(
        "untied: tie_word_embeddings is true, but the file has a separate head"
    )
    same_scores(tmp_path / "ours", theirs, 2)

    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    result = convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'again'}", "parallel.tensor=2")
    assert result["embeddings"].startswith("tied: one matrix")


def test_what_has_no_state_is_not_resumed(tmp_path):
    write_llama(tmp_path / "hf")
    convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    with pytest.raises(ValueError, match=r"holds only weights, nothing to resume: .* with initialize="):
        read_state(tmp_path / "ours")


def verify(folder: Path) -> list[str]:
    return damage(folder, Control())


def test_checksums_of_a_conversion_are_verified(ranks, tmp_path):
    write_llama(tmp_path / "hf")
    convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    assert ranks(2).run(verify, tmp_path / "ours") == [[], []]
    (tmp_path / "ours" / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is damaged" in ranks(2).run(verify, tmp_path / "ours")[0][0]


def test_the_sizes_are_those_of_the_file(tmp_path):
    write_llama(tmp_path / "hf")
    convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    model = read_architecture(tmp_path / "ours").model
    assert (model.hidden, model.kv_heads, model.rope_base) == (SIZES["hidden_size"], 4, 5000.0)
    assert (model.sequence, model.norm_eps, model.padded_vocab_size) == (64, 1e-6, 404)


def test_keys_that_are_left_out_mean_what_they_mean_to_transformers(tmp_path):
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {key: SIZES[key] for key in needed}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    ours, theirs = read_family(tmp_path), transformers.LlamaConfig(**sizes)
    for key in ("hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings"):
        assert getattr(ours, key) == getattr(theirs, key), key
    model = model_config(ours, tmp_path)
    assert (model.kv_heads, model.head_size) == (theirs.num_key_value_heads, theirs.head_dim)
    assert (model.sequence, model.norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert model.init_std == theirs.initializer_range
    assert model.rope_base == theirs.rope_parameters["rope_theta"]
