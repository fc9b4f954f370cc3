"""``natural``: stochastic rounding to a power of two (natural compression, arXiv 1905.10988).

    C(g) = sign(g) 2^e or sign(g) 2^(e + 1),  up with probability |g| / 2^e - 1

In a float32 that probability is the mantissa, so only the sign and the exponent are sent: 9 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.blocks import blocks, pack, packed_bytes, unpack
from caat.compression.codec import Codec, Parts
from caat.compression.randomness import Counter

MANTISSA = (1 << 23) - 1
INFINITE = 255


class Natural(Codec):
    """9 bits per number. inf and nan become inf; no finite number does."""

    biased = False

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def encode(self, flat: Tensor) -> Parts:
        rows = blocks(flat)
        bits = rows.view(torch.int32)
        exponent, mantissa = (bits >> 23) & 0xFF, bits & MANTISSA
        up = self.counter.uniform_like(rows) * (MANTISSA + 1) < mantissa
        exponent = exponent + (up & (exponent < INFINITE - 1))
        return exponent.to(torch.uint8), pack((rows < 0).to(torch.uint8), 1)

    def decode(self, parts: Parts, n: int) -> Tensor:
        exponent, negative = parts
        bits = (exponent.int() << 23) | (unpack(negative, 1).int() << 31)
        return bits.view(torch.float32).view(-1)[:n]

    def size(self, n: int) -> int:
        return packed_bytes(n, 8) + packed_bytes(n, 1)
