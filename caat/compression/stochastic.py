"""``tern``, ``qsgd:S``: stochastic rounding, whose mean is the message.

    q = s_b l / S,  l = floor(S |g| / s_b + u) sign(g),  u uniform in [0, 1)

``qsgd:S`` (Alistarh et al. 2017, arXiv 1610.02132, section 3.1): s_b is the L2 norm of a block of 256.
``tern`` (Wen et al. 2017, arXiv 1705.07878, equation 2): S = 1 and s_b is the largest magnitude.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from caat.compression.blocks import BLOCK, BlockCodec
from caat.compression.codec import Parts
from caat.compression.integers import SMALLEST
from caat.compression.packing import pack, unpack
from caat.compression.randomness import Counter


class Stochastic(BlockCodec):
    """``levels`` S per sign, packed into 2, 4 or 8 bits, and one scale per 256 numbers.

    The mean is the message as long as float32 can hold the scale: the largest magnitude must be above 1e-38,
    and for an L2 norm the numbers between about 1e-19 and 1e18, as their squares are added in float32.
    """

    biased = False

    def __init__(self, levels: int, norm: float, counter: Counter) -> None:
        self.levels, self.norm, self.counter = levels, norm, counter
        self.bits = next(bits for bits in (2, 4, 8) if 2 * levels < 2**bits)
        self.layout = (torch.float32, 1), (torch.int8, BLOCK * self.bits // 8)

    def encode_rows(self, rows: Tensor, scratch: Tensor, parts: Parts) -> None:
        scale, packed = parts
        torch.abs(rows, out=scratch)
        if self.norm == math.inf:
            torch.amax(scratch, 1, keepdim=True, out=scale)
        else:
            torch.linalg.vector_norm(scratch, self.norm, 1, keepdim=True, out=scale)
        # Rounding in the division must not lift a number above the last level.
        scratch.div_(scale.clamp_min(SMALLEST)).clamp_max_(1.0).mul_(self.levels)
        levels = scratch.add_(self.counter.uniform_like(rows)).floor_()
        # So may rounding in the sum.
        packed.copy_(pack(levels.clamp_max_(self.levels).copysign_(rows), self.bits))

    def decode_rows(self, parts: Parts, out: Tensor) -> None:
        scale, packed = parts
        unpack(packed, self.bits, out, signed=True).mul_(scale / self.levels)
