"""Blocks of 256 numbers that share a scale, and small whole numbers packed into bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256


def count(n: int) -> int:
    """Return the number of blocks of ``n`` numbers; the last one is padded."""
    return -(-n // BLOCK)


def blocks(flat: Tensor) -> Tensor:
    """[n] -> float32 [blocks, 256], padded with zeros."""
    return F.pad(flat.float(), (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def packed_bytes(n: int, bits: int) -> int:
    """Return the bytes of the packed blocks of ``n`` numbers of ``bits`` bits."""
    return count(n) * BLOCK * bits // 8


def pack(numbers: Tensor, bits: int) -> Tensor:
    """uint8 [blocks, 256] below 2^bits -> uint8 [blocks, 256 * bits / 8]; ``bits`` divides 8.

    The first of 8 / bits equal runs of a block goes to the lowest bits: whole runs are shifted at a time.
    """
    if bits == 8:
        return numbers
    first, *others = numbers.chunk(8 // bits, 1)
    packed = first.clone()
    for place, run in enumerate(others, 1):
        packed |= run << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack`."""
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    return torch.cat([(packed >> (place * bits)) & mask for place in range(8 // bits)], 1)
