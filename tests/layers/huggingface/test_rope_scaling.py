"""Scaled rotary positions against transformers: frequencies, logits, gradients, and decoding with a cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import Architecture
from conf.model import ModelConfig
from conf.partition import shared_channels
from conf.rope_scaling import RopeScalingConfig
from layers import GPT
from layers.cache import KVCache
from layers.huggingface.families import model_config, read_family
from layers.huggingface.modeling_caat import CaatConfig, CaatForCausalLM
from layers.rotary import frequencies_at, yarn_scale
from tests.layers.huggingface.llamas import SIZES
from tests.models import SCALED, SMALL, batch, build, gathered
from tests.reference import random_weights

TOLERANCE = dict(rtol=0, atol=1e-10)
# transformers computes frequencies, angles and norms in float32, whatever the type of the model.
ROUNDED = dict(rtol=0, atol=1e-5)
LLAMA3 = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
# What config.json may say, by type.
WRITTEN = [
    ("linear", {"factor": 2}),
    ("dynamic", {"factor": 4.0}),
    ("llama3", LLAMA3),
    ("yarn", YARN),
    ("yarn", {"factor": 4}),
    ("yarn", {**YARN, "factor": None}),
    ("yarn", {**YARN, "beta_fast": 3, "beta_slow": 0.5, "truncate": False}),
    ("yarn", {**YARN, "attention_factor": 1.5, "mscale": 0.5, "mscale_all_dim": 0.7}),
    ("yarn", {**YARN, "mscale": 0.5, "mscale_all_dim": 0.7, "beta_fast": 0}),
    ("yarn", {**YARN, "mscale": 0.5, "factor": 1.0}),
]


def scaled(kind: str) -> ModelConfig:
    return replace(SMALL, rope_scaling=SCALED[kind])


def exported(c: ModelConfig, shards: int = 1, ratio: float = 1.0) -> dict:
    k = shared_channels(c.hidden, ratio, shards)
    return Architecture(c, shards, ratio, k, shards**0.5).to_json()


def our_logits(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    return model.head.after_norm(model.hidden(tokens))[1][..., : SMALL.vocab_size]


def theirs(c: ModelConfig, shards: int, ratio: float):
    """The model of transformers at ratio 1, else ours for transformers."""
    config = exported(c, shards, ratio)
    if ratio < 1:
        model = CaatForCausalLM(CaatConfig(**config))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model = model.double()
    model.load_state_dict(random_weights(c))
    return model.eval()


@contextmanager
def unrounded() -> Iterator[None]:
    """Let the code of transformers compute in float64 where it says float32."""
    with pytest.MonkeyPatch.context() as patch:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        for name in ("float", "float32"):
            patch.setattr(torch, name, torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@pytest.mark.parametrize("spelling", ["old", "new", "outer length"])
@pytest.mark.parametrize(("kind", "values"), WRITTEN)
def test_frequencies_from_config_json(kind, values, spelling, tmp_path):
    sizes = {**SIZES, "hidden_size": 256, "rope_parameters": None}
    if spelling == "new":
        sizes["rope_parameters"] = {"rope_type": kind, "rope_theta": 5000.0, **values}
    else:
        sizes |= {"rope_scaling": {"type": kind, **values}, "rope_theta": 5000.0}
        if spelling == "outer length":
            sizes["original_max_position_embeddings"] = 24
            # transformers prefers rope_scaling.
            sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    ours = model_config(read_family(tmp_path), tmp_path)
    config = transformers.LlamaConfig.from_pretrained(tmp_path)
    for length in (10, 64, 65, 150):
        with unrounded():
            want, scale = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
        got = frequencies_at(torch.arange(length), ours)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
        assert scale == (pytest.approx(yarn_scale(ours), abs=1e-12) if kind == "yarn" else 1.0)


@pytest.mark.parametrize(("shards", "ratio"), [(2, 1.0), (4, 0.5)])
@pytest.mark.parametrize("kind", SCALED)
def test_logits_and_gradients(kind, shards, ratio):
    """Below and above the original length. Gradients are those of the longer one."""
    c = scaled(kind)
    ours, rounded = build(Mesh(shards), ratio, config=c), theirs(c, shards, ratio)
    with unrounded():
        model = theirs(c, shards, ratio)
    for length in (8, 40):
        tokens, targets = batch(length=length)
        got = our_logits(ours, tokens)
        torch.testing.assert_close(got, rounded(tokens).logits, **ROUNDED)
        with unrounded():
            logits = model(tokens).logits
        torch.testing.assert_close(got, logits, **TOLERANCE)
    assert (got - our_logits(build(Mesh(shards), ratio), tokens)).abs().max() > 0.1

    ours(tokens, targets).mean().backward()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    want = gathered(ours, {name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@torch.no_grad()
def test_dynamic_scaling_with_a_cache(ratio):
    """Two prompts of unequal length grow past the model's 16 tokens: the same tokens and logits."""
    c = scaled("dynamic")
    ours = build(Mesh(4), ratio, config=c)
    rows, padding, new = batch(seed=3, length=12)[0], torch.tensor([0, 5]), 20
    mask = (torch.arange(12) >= padding[:, None]).long()
    steps: list[torch.Tensor] = []
    settings = dict(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    with unrounded():
        model = theirs(c, 4, ratio)
        model.register_forward_hook(lambda module, inputs, out: steps.append(out.logits[:, -1]))
        sequences = model.generate(rows * mask, attention_mask=mask, **settings)

    cache = KVCache(c, ours.mesh, padding, 12 + new, torch.float64)
    tokens, whole = rows * mask, rows[:1]
    for step in range(new):
        logits = ours(tokens, cache=cache)[:, -1, : c.vocab_size]
        torch.testing.assert_close(logits, steps[step], **TOLERANCE)
        tokens = logits.argmax(-1, keepdim=True)
        assert torch.equal(tokens[:, 0], sequences[:, 12 + step])
        whole = torch.cat([whole, tokens[:1]], 1)
    # Without a cache, all keys would have the angles of the last length.
    assert (our_logits(ours, whole[:, :-1])[0, -1] - logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SCALED)
def test_config_json_round_trip(kind, tmp_path):
    """Ours, and what transformers makes of it when it saves the model again."""
    c = scaled(kind)
    if kind == "yarn":
        c = replace(c, rope_scaling=replace(c.rope_scaling, attention_factor=1.25, truncate=False))
    path = tmp_path / "config.json"
    for values in (exported(c, 4, 0.5), CaatConfig(**exported(c, 4, 0.5)).to_dict()):
        found = Architecture.parse(json.dumps(values).encode(), path)
        assert found.model == replace(c, name=tmp_path.name, padded_vocab_size=64)


def test_config_json_of_earlier_checkpoints(tmp_path):
    values = exported(SMALL)
    for key in ("rope_scaling", "rope_parameters"):
        values.pop(key, None)
        found = Architecture.parse(json.dumps(values).encode(), tmp_path / "config.json")
        assert found.model.rope_scaling == RopeScalingConfig() and found.model.rope_base == SMALL.rope_base
