"""Numbers of 1, 2 or 4 bits packed into bytes, by adding the upper half of a row to the lower half:

    a[k] <- a[k] + 2^bits a[k + n / 2],  n <- n / 2,  bits <- 2 bits,  until bits = 8

The arithmetic is in float32: it is exact here, and torch vectorises it better than shifts of bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Return a view [rows, n * bits / 8] of ``numbers`` [rows, n], which it overwrites.

    Numbers are from 0 to 2^bits - 1, and packed numbers fit into uint8; or their magnitude is below
    2^(bits - 1), and packed numbers fit into int8. n is a multiple of 8.
    """
    while bits < 8:
        numbers, upper = numbers.chunk(2, 1)
        numbers.add_(upper, alpha=1 << bits)
        bits *= 2
    return numbers


def unpack(packed: Tensor, bits: int, out: Tensor, *, signed: bool) -> Tensor:
    """The inverse of :func:`pack`: write the numbers to float32 ``out`` [rows, n], and return it."""
    width = packed.shape[1]
    out[:, :width] = packed
    held = 8
    while held > bits:
        held //= 2
        lower, upper = out[:, : 2 * width].chunk(2, 1)
        torch.mul(lower, 1 / (1 << held), out=upper)
        # The lower half adds less than 1 to this, or less than 1/2 in magnitude if numbers are signed.
        upper.round_() if signed else upper.floor_()
        lower.sub_(upper, alpha=1 << held)
        width *= 2
    return out
