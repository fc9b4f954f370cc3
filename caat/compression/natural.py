"""``natural``: stochastic rounding to a power of two (natural compression, arXiv 1905.10988).

    C(g) = sign(g) 2^e or sign(g) 2^(e + 1),  up with probability |g| / 2^e - 1

In a float32 that probability is the mantissa, so only the sign and the exponent are sent: 9 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.blocks import BLOCK, BlockCodec
from caat.compression.codec import Parts
from caat.compression.packing import pack, unpack
from caat.compression.randomness import Counter

# The bits of infinity; those of nan are above.
INFINITY = 0x7F800000


class Natural(BlockCodec):
    """9 bits per number. inf and nan become inf; no finite number does."""

    biased = False
    layout = (torch.uint8, BLOCK), (torch.uint8, BLOCK // 8)

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def encode_rows(self, rows: Tensor, scratch: Tensor, parts: Parts) -> None:
        exponents, negative = parts
        bits = torch.abs(rows, out=scratch).view(torch.int32).clamp_max_(INFINITY)
        exponent = bits >> 23
        # A random mantissa that is added carries into the exponent with the wanted probability.
        bits += self.counter.uniform_like(rows).mul_(1 << 23).int()
        bits >>= 23
        # No finite number becomes infinite.
        exponents.copy_(torch.minimum(bits, exponent.clamp_min_(254)))
        negative.copy_(pack(torch.lt(rows, 0, out=scratch), 1))

    def decode_rows(self, parts: Parts, out: Tensor) -> None:
        exponents, negative = parts
        # 0 becomes 1, 1 becomes -1.
        signs = unpack(negative, 1, out, signed=False).mul_(-2).add_(1)
        signs.mul_((exponents.int() << 23).view(torch.float32))
