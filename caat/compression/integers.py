"""``int8``, ``int4``: rounded to the nearest of 2^bits - 1 levels, with one scale for 256 numbers.

q = round(g / s),  s = max|g| / (2^(bits - 1) - 1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.blocks import BLOCK, BlockCodec
from caat.compression.codec import Parts
from caat.compression.packing import pack, unpack

# Avoids a division by zero in a block of zeros.
SMALLEST = 1e-38


class Integers(BlockCodec):
    """4 + 256 · bits / 8 bytes per block. A block with nan or inf gets that scale, and decodes to nan.

    A block whose scale would be below 1e-38, near the smallest float32, decodes to less than it should.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.top = bits, 2 ** (bits - 1) - 1
        self.layout = (torch.float32, 1), (torch.int8, BLOCK * bits // 8)

    def encode_rows(self, rows: Tensor, scratch: Tensor, parts: Parts) -> None:
        scale, packed = parts
        torch.abs(rows, out=scratch)
        torch.amax(scratch, 1, keepdim=True, out=scale).div_(self.top)
        levels = torch.div(rows, scale.clamp_min(SMALLEST), out=scratch).round_()
        packed.copy_(pack(levels, self.bits))

    def decode_rows(self, parts: Parts, out: Tensor) -> None:
        scale, packed = parts
        unpack(packed, self.bits, out, signed=True).mul_(scale)
