"""Small models for the oracles, and the gathering of their shards into full tensors."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.parallel.sharding import Sharding
from conf.model import ModelConfig
from conf.partition import paper_scale
from conf.rope_scaling import RopeScalingConfig
from layers import GPT
from layers.weights import gpt_weights
from tests.reference import random_weights

# No N divides 61: the vocabulary is padded, and the padding must have no effect. Heads have 8 channels: with
# a single rotary pair, a wrong pairing of channels would go unnoticed.
SMALL = ModelConfig(
    layers=2, hidden=128, ffn=48, heads=16, kv_heads=8, vocab_size=61, sequence=16, norm_eps=1e-5
)
# Scaled positions for it. llama3 and yarn have frequencies that are kept, divided and in between, and
# the original length 12; dynamic has the model's 16.
SCALED = {
    "linear": RopeScalingConfig("linear", 2.5),
    "dynamic": RopeScalingConfig("dynamic", 3.0),
    "llama3": RopeScalingConfig("llama3", 8.0, 12, low_freq_factor=0.15, high_freq_factor=1.5),
    "yarn": RopeScalingConfig("yarn", 4.0, 12, beta_fast=4.0, beta_slow=0.1),
}
# What other families than Llama 1 and 2 have.
OPTIONS: dict[str, dict] = {
    "head size": dict(head_dim=12),
    "biases": dict(attention_bias=True),
    "norms of heads": dict(qk_norm=True, head_dim=12),
    "biases and norms": dict(attention_bias=True, qk_norm=True),
    "tied embeddings": dict(tie_embeddings=True),
}
FAMILIES = {name: replace(SMALL, **options) for name, options in OPTIONS.items()}


def batch(seed: int = 0, size: int = 2, length: int = 9) -> tuple[Tensor, Tensor]:
    """Token numbers and targets [size, length]."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randint(SMALL.vocab_size, (size, length + 1), generator=g)
    return text[:, :-1], text[:, 1:]


def build(
    mesh: Mesh, ratio: float, checkpointing: str = "none", dtype=torch.float64, config: ModelConfig = SMALL
) -> GPT:
    """Build the small model with the reference's weights and a private scale of sqrt(N), which is not 1."""
    weights = random_weights(config)
    model = GPT.empty(config, mesh, ratio, paper_scale(mesh.shards), checkpointing, dtype=dtype)
    return model.fill(lambda name, _: weights[name])


def gathered(model: GPT, local: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return full tensors by Hugging Face name on every rank, from its ``local`` ones by parameter name."""
    mesh, full = model.mesh, {}
    for weight in gpt_weights(model.config):
        value = local[weight.parameter].detach().contiguous()
        sharding = model.sharding_of(weight)
        if sharding is None:
            full[weight.names[0]] = value
            continue
        rows = [value]
        if mesh.processes > 1:
            rows = [torch.empty_like(value) for _ in range(mesh.processes)]
            dist.all_gather(rows, value, group=mesh.tensor.group)
        parts = joined(sharding, rows, mesh.shards)
        for name, part, shape in zip(weight.names, parts, weight.shapes, strict=True):
            full[name] = part[: shape[0]]
    return full


def joined(sharding: Sharding, held: list[Tensor], shards: int) -> list[Tensor]:
    """Return the full parts from the tensors that the processes hold, in rank order."""
    each = [shard for local in held for shard in local.chunk(shards // len(held), sharding.dim)]
    pieces = [shard.split([size // shards for size in sharding.sizes], sharding.dim) for shard in each]
    return [torch.cat(slices, sharding.dim) for slices in zip(*pieces, strict=True)]
