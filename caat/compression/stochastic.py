"""``tern``, ``qsgd:S``: stochastic rounding, whose mean is the message.

    q = s_b l / S,  l = floor(S |g| / s_b + u) sign(g),  u uniform in [0, 1)

``qsgd:S`` (Alistarh et al. 2017, arXiv 1610.02132, section 3.1): s_b is the L2 norm of a block of 256.
``tern`` (Wen et al. 2017, arXiv 1705.07878, equation 2): S = 1 and s_b is the largest magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.blocks import blocks, count, pack, packed_bytes, unpack
from caat.compression.codec import Codec, Parts
from caat.compression.randomness import Counter


class Stochastic(Codec):
    """``levels`` S per sign, packed into 2, 4 or 8 bits, and one scale per 256 numbers."""

    biased = False

    def __init__(self, levels: int, norm: float, counter: Counter) -> None:
        self.levels, self.norm, self.counter = levels, norm, counter
        self.bits = next(bits for bits in (2, 4, 8) if 2 * levels < 2**bits)

    def encode(self, flat: Tensor) -> Parts:
        rows = blocks(flat)
        scale = torch.linalg.vector_norm(rows, self.norm, 1, keepdim=True)
        # Rounding in the division must not lift a number above the last level.
        magnitude = (rows.abs() / scale.clamp_min(1e-38)).clamp_max_(1.0).mul_(self.levels)
        level = magnitude.add_(self.counter.uniform_like(rows)).floor_().copysign_(rows)
        return scale[:, 0], pack(level.add_(self.levels).to(torch.uint8), self.bits)

    def decode(self, parts: Parts, n: int) -> Tensor:
        scale, packed = parts
        level = unpack(packed, self.bits).float() - self.levels
        return (level * (scale / self.levels)[:, None]).view(-1)[:n]

    def size(self, n: int) -> int:
        return 4 * count(n) + packed_bytes(n, self.bits)
