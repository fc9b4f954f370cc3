"""The parameters that one process holds, before ZeRO cuts them over the replicas."""

from __future__ import annotations

from typing import NamedTuple

from conf.model import ModelConfig


class Parameter(NamedTuple):
    """``numbers`` of it; the weight of a norm is in an optimizer group of its own, without weight decay."""

    numbers: int
    norm: bool = False


def local_parameters(c: ModelConfig, shards: int, processes: int) -> list[Parameter]:
    """Of a GPT of ``shards`` shards on ``processes`` processes, in the order of the forward pass."""
    heads = c.hidden + 2 * c.kv_heads * c.head_dim
    vocabulary, qkv, output, gate_up, down = (
        Parameter(c.hidden * width // processes)
        for width in (c.padded_vocab(shards), heads, c.hidden, 2 * c.ffn, c.ffn)
    )
    norm = Parameter(c.hidden, norm=True)
    block = [norm, qkv, output, norm, gate_up, down]
    return [vocabulary, *c.layers * block, norm, vocabulary]


def local_numbers(c: ModelConfig, shards: int, processes: int) -> int:
    """Numbers of all of them: the process's shards, and all of the norms."""
    return sum(parameter.numbers for parameter in local_parameters(c, shards, processes))
