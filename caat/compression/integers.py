"""``int8``, ``int4``: rounded to the nearest of 2^bits - 1 levels, with one scale for 256 numbers.

q = round(g / s),  s = max|g| / (2^(bits - 1) - 1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.blocks import blocks, count, pack, packed_bytes, unpack
from caat.compression.codec import Codec, Parts

# Avoids a division by zero in a block of zeros.
SMALLEST = 1e-38


class Integers(Codec):
    """4 + 256 · bits / 8 bytes per block. A block with nan or inf gets that scale, and decodes to nan."""

    def __init__(self, bits: int) -> None:
        self.bits, self.top = bits, 2 ** (bits - 1) - 1

    def encode(self, flat: Tensor) -> Parts:
        rows = blocks(flat)
        scale = torch.linalg.vector_norm(rows, float("inf"), 1, keepdim=True) / self.top
        levels = (rows / scale.clamp_min(SMALLEST)).round_()
        if self.bits == 8:
            return scale[:, 0], levels.to(torch.int8)
        # Above zero, for the shifts of packing.
        return scale[:, 0], pack(levels.add_(self.top + 1).to(torch.uint8), self.bits)

    def decode(self, parts: Parts, n: int) -> Tensor:
        scale, levels = parts
        if self.bits < 8:
            levels = unpack(levels, self.bits).to(torch.int8) - (self.top + 1)
        return (levels * scale[:, None]).view(-1)[:n]

    def size(self, n: int) -> int:
        return 4 * count(n) + packed_bytes(n, self.bits)
