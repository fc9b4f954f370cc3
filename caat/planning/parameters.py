"""The parameters of one process, before ZeRO partitions them over the replicas."""

from __future__ import annotations

from typing import NamedTuple

from conf.model import ModelConfig


class Parameter(NamedTuple):
    """A parameter of ``numbers`` numbers; norms are in a separate optimizer group without weight decay."""

    numbers: int
    norm: bool = False


def local_parameters(c: ModelConfig, shards: int, processes: int) -> list[Parameter]:
    """Return those of a GPT with ``shards`` shards on ``processes`` processes, in forward order."""
    heads = c.hidden + 2 * c.kv_heads * c.head_dim
    vocabulary, qkv, output, gate_up, down = (
        Parameter(c.hidden * width // processes)
        for width in (c.padded_vocab(shards), heads, c.hidden, 2 * c.ffn, c.ffn)
    )
    norm = Parameter(c.hidden, norm=True)
    block = [norm, qkv, output, norm, gate_up, down]
    return [vocabulary, *c.layers * block, norm, vocabulary]


def local_numbers(c: ModelConfig, shards: int, processes: int) -> int:
    """Return the number of parameters of a process: its shards, and all norms."""
    return sum(parameter.numbers for parameter in local_parameters(c, shards, processes))
