"""The parameters of one process, before ZeRO partitions them over the replicas."""

from __future__ import annotations

from typing import NamedTuple

from conf.model import ModelConfig


class Parameter(NamedTuple):
    """A parameter of ``numbers`` numbers; norms are in a separate optimizer group without weight decay.

    A matrix has ``rows``, a vector one.
    """

    numbers: int
    norm: bool = False
    rows: int = 1

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
    output, down = row_parallel(c.query_size), row_parallel(c.ffn)
    norm = Parameter(c.hidden, norm=True)
    block = [norm, qkv, output, norm, gate_up, down]
    return [vocabulary, *c.layers * block, norm, vocabulary]


def local_numbers(c: ModelConfig, shards: int, processes: int) -> int:
    """Return the number of parameters of a process: its shards, and all norms."""
    return sum(parameter.numbers for parameter in local_parameters(c, shards, processes))
