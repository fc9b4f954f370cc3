"""The parameters of one process, before ZeRO partitions them over the replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conf.model import ModelConfig


class Parameter(NamedTuple):
    """A parameter of ``numbers`` numbers. A matrix has ``rows``, a vector one.

    ``tied``: it is used twice in a forward pass, first and last.
    """

    numbers: int
    norm: bool = False
    rows: int = 1
    bias: bool = False
    tied: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.numbers // self.rows


def local_parameters(c: ModelConfig, shards: int, processes: int) -> list[Parameter]:
    """Return those of a GPT with ``shards`` shards on ``processes`` processes, in forward order."""

    def column_parallel(width: int) -> Parameter:
        return Parameter(c.hidden * width // processes, rows=width // processes)

    def row_parallel(width: int) -> Parameter:
        return Parameter(c.hidden * width // processes, rows=c.hidden)

    vocabulary = column_parallel(c.padded_vocab(shards))
    qkv, gate_up = column_parallel(c.query_size + 2 * c.key_value_size), column_parallel(2 * c.ffn)
    biases = [Parameter(qkv.rows, bias=True)] if c.attention_bias else []
    output, down = row_parallel(c.query_size), row_parallel(c.ffn)
    norm = Parameter(c.hidden, norm=True)
    head_norms = 2 * [Parameter(c.head_size, norm=True)] if c.qk_norm else []
    block = [norm, qkv, *biases, output, *head_norms, norm, gate_up, down]
    embedding = vocabulary._replace(tied=c.tie_embeddings)
    head = [] if c.tie_embeddings else [vocabulary]
    return [embedding, *c.layers * block, norm, *head]


def optimizer_groups(held: Sequence[Parameter]) -> list[list[Parameter]]:
    """Return matrices, biases and norm weights apart, like :func:`caat.optim.groups.decay_groups`."""
    matrices = [p for p in held if not p.norm and not p.bias]
    biases, norms = [p for p in held if p.bias], [p for p in held if p.norm]
    return [matrices, *([biases] if biases else []), norms]


def norm_numbers(c: ModelConfig) -> int:
    """Return the number of all norm weights."""
    return sum(parameter.numbers for parameter in local_parameters(c, 1, 1) if parameter.norm)


def local_numbers(c: ModelConfig, shards: int, processes: int) -> int:
    """Return the number of parameters of a process: its shards, and all norms."""
    return sum(parameter.numbers for parameter in local_parameters(c, shards, processes))
