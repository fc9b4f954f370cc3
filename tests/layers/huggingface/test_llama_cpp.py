"""llama.cpp's own converter reads what `caat convert` exports: the same weights and tokens.

The package llama-cpp-python ships llama.cpp with the converter, 60 MB of source. CAAT_TEST_DATA names
a folder to keep it in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import transformers

from caat.data.tokenizer import find_tokenizer, load_tokenizer
from caat.parallel.mesh import Mesh
from caat.training.checkpoint.folder import find
from eval.open import load_model
from eval.quality.score import next_token_log_probabilities
from launch.convert import main as convert
from tests.paragraphs import PARAGRAPHS

pytestmark = pytest.mark.slow

PACKAGE = "llama-cpp-python==0.3.36"
RUN = ["parallel.tensor=2", "sync.ratio=1", "train.steps=2", "train.sequence=32", "train.micro_batch=2"]
RUN += ["train.global_batch=2", "train.eval_sequences=2", "model.vocab_size=400", "data.validation=0.1"]
RUN += ["optim.warmup_steps=0", "train.precision=fp32"]
FAMILIES = {
    "llama": ["model.kv_heads=4"],
    "qwen2": ["model.attention_bias=true"],
    "qwen3": ["model.qk_norm=true", "model.tie_embeddings=true", "model.head_dim=16"],
}


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory) -> Path:
    """The source of llama.cpp."""
    folder = tmp_path_factory.mktemp("llama-cpp")
    kept = Path(os.environ.get("CAAT_TEST_DATA", folder))
    if not (archives := list(kept.glob("llama_cpp_python-*.tar.gz"))):
        options = [
            "--no-deps",
            "--no-binary=llama-cpp-python",
            "--quiet",
            "--retries",
            "1",
            "--timeout",
            "20",
        ]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", str(kept), PACKAGE]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            pytest.skip(f"{PACKAGE} could not be fetched")
        archives = list(kept.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_an_exported_model(llama_cpp, tmp_path, monkeypatch, family):
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text("\n\n".join(PARAGRAPHS))
    settings = [*RUN, *FAMILIES[family], "data.path=own.txt", "run.dir=run"]
    subprocess.run([sys.executable, "-m", "launch.pretrain", *settings], check=True)
    convert(["from=run", "to=hf"])
    command = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), "hf", "--outtype", "f32"]
    environment = {**os.environ, "PYTHONPATH": str(llama_cpp / "gguf-py")}
    subprocess.run([*command, "--outfile", "model.gguf"], check=True, env=environment)

    checkpoint = find("run")
    ours = load_tokenizer(find_tokenizer(checkpoint))
    from gguf import GGUFReader

    fields = GGUFReader("model.gguf").fields
    assert fields["general.architecture"].contents() == family
    pieces = [ours.id_to_piece(token) for token in range(ours.vocab_size())]
    assert fields["tokenizer.ggml.tokens"].contents()[: len(pieces)] == pieces
    assert fields["tokenizer.ggml.bos_token_id"].contents() == ours.bos_id()

    # The file has the size of the heads, but transformers does not read it.
    sizes = transformers.AutoConfig.from_pretrained("hf")
    assert fields[f"{family}.attention.key_length"].contents() == sizes.head_dim
    dense = transformers.GgufConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        ".", gguf_file="model.gguf", config=sizes, dtype=torch.float32, quantization_config=dense
    )
    tokens = torch.randint(3, 400, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    got = next_token_log_probabilities(load_model(checkpoint, Mesh(2)), tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
