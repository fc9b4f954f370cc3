"""FLOPs and bytes of a step, computed from the configuration."""

from __future__ import annotations

from dataclasses import replace

from caat.planning.parameters import local_numbers
from conf.model import ModelConfig
from conf.sync import WireFormat


def flops_per_token(c: ModelConfig, sequence: int) -> int:
    """Return the model FLOPs of a trained token, forward and backward, as in PaLM (arXiv 2204.02311, app. B).

    6 per weight of a matrix product (the head counts, the embedding look-up does not) plus
    12 · layers · heads · head size · sequence for attention. Recomputation is not counted.
    """
    return 6 * _matrices(c) + 12 * c.layers * c.query_size * sequence


def checkpoint_bytes(c: ModelConfig, numbers: int) -> int:
    """Return the size of a checkpoint with ``numbers`` float32 numbers per weight, the weight included.

    Its small files are not counted.
    """
    return 4 * numbers * local_numbers(replace(c, padded_vocab_size=None), 1, 1)


def recomputed_flops_per_token(c: ModelConfig, sequence: int, checkpointing: str) -> int:
    """Return the FLOPs that activation checkpointing adds to a trained token.

    ``full``: a second forward pass of the blocks, without the head; ``selective``: attention between its
    projections (pointwise work such as SwiGLU is not counted in this module); ``none``: nothing.
    """
    if checkpointing == "none":
        return 0
    attention = 4 * c.layers * c.query_size * sequence
    blocks = flops_per_token(c, sequence) // 3 - 2 * c.hidden * c.vocab_size
    return blocks if checkpointing == "full" else attention


def sync_bytes(c: ModelConfig, channels: int, tokens: int, wire: WireFormat) -> int:
    """Return the bytes of all-reduces inside the layers, per process and direction, for ``tokens`` tokens.

    Two messages per layer, of ``channels`` shared channels each (docs/how-it-works.md); ``channels`` = hidden
    is full synchronisation as in Megatron.
    """
    return 2 * c.layers * tokens * wire.token_bytes(channels)


def _matrices(c: ModelConfig) -> int:
    """Return the number of weights in all matrix products."""
    attention = 2 * c.hidden * (c.query_size + c.key_value_size)
    return c.layers * (attention + 3 * c.hidden * c.ffn) + c.hidden * c.vocab_size
