"""The full tensors behind a GPT's parameters, by their Hugging Face Llama names, and their initialisation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from caat.parallel.sharding import FullTensors, Sharding
from conf.model import ModelConfig

# full(name, shape) -> the complete, unpadded tensor of that Hugging Face name.
FullWeights = Callable[[str, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Weight:
    """A parameter of :class:`layers.GPT` and the full tensors of which it holds shards."""

    parameter: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    # Standard deviation of the initialisation, 0 for biases; None for norm weights, which are initialised to
    # one.
    std: float | None

    def full_tensors(self, sharding: Sharding | None) -> FullTensors:
        """Return the full tensors as sharded by ``sharding``; None: replicated."""
        return FullTensors(self.parameter, self.names, self.shapes, sharding)


def gpt_weights(c: ModelConfig) -> Iterator[Weight]:
    """Yield every parameter, in order; vocabulary without padding."""
    vocab, norm, wide = (c.vocab_size, c.hidden), ((c.hidden,),), (c.ffn, c.hidden)
    query, key_value = (c.query_size, c.hidden), (c.key_value_size, c.hidden)
    # Two projections per layer write to the residual stream, whose variance must not grow with depth (GPT-2).
    output_std = c.init_std / sqrt(2 * c.layers)

    yield Weight("embedding.weight", ("model.embed_tokens.weight",), (vocab,), c.init_std)
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        attention, mlp = theirs + "self_attn.", theirs + "mlp."
        yield Weight(ours + "attention_norm.weight", (theirs + "input_layernorm.weight",), norm, None)
        yield Weight(
            ours + "attention.qkv.weight",
            (attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"),
            (query, key_value, key_value),
            c.init_std,
        )
        if c.attention_bias:
            biases = tuple(f"{attention}{part}_proj.bias" for part in "qkv")
            yield Weight(ours + "attention.qkv.bias", biases, (query[:1], key_value[:1], key_value[:1]), 0.0)
        output = attention + "o_proj.weight"
        yield Weight(ours + "attention.output.weight", (output,), (query[::-1],), output_std)
        for name in ("q_norm", "k_norm") if c.qk_norm else ():
            weight = f"{name}.weight"
            yield Weight(f"{ours}attention.{weight}", (attention + weight,), ((c.head_size,),), None)
        yield Weight(ours + "mlp_norm.weight", (theirs + "post_attention_layernorm.weight",), norm, None)
        yield Weight(
            ours + "mlp.gate_up.weight",
            (mlp + "gate_proj.weight", mlp + "up_proj.weight"),
            (wide, wide),
            c.init_std,
        )
        yield Weight(ours + "mlp.down.weight", (mlp + "down_proj.weight",), (wide[::-1],), output_std)
    yield Weight("norm.weight", ("model.norm.weight",), norm, None)
    if not c.tie_embeddings:
        yield Weight("head.weight", ("lm_head.weight",), (vocab,), c.init_std)


def initial_weights(config: ModelConfig, seed: int) -> FullWeights:
    """Return the initialisation, in which each full matrix depends only on the seed and its name.

    The model is therefore bit-identical at every N and P.
    """
    stds = {name: weight.std for weight in gpt_weights(config) for name in weight.names}

    def full(name: str, shape: tuple[int, ...]) -> Tensor:
        std = stds[name]
        if std is None:
            return torch.ones(shape)
        if std == 0:
            return torch.zeros(shape)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randn(shape, generator=generator) * std

    return full


def parameter_count(config: ModelConfig) -> int:
    """Return the number of trained parameters, without padding."""
    return sum(torch.Size(shape).numel() for weight in gpt_weights(config) for shape in weight.shapes)
