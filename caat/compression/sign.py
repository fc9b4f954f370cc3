"""``sign``: one bit a number and the mean magnitude of 256 (EF-signSGD, arXiv 1901.09847).

    C(g) = mean|g| sign(g),  with sign(0) = 1

With error feedback this is 1-bit SGD (Seide et al. 2014), with one scale for both signs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.blocks import BLOCK, BlockCodec
from caat.compression.codec import Parts
from caat.compression.packing import pack, unpack


class Sign(BlockCodec):
    """36 bytes per block."""

    layout = (torch.float32, 1), (torch.uint8, BLOCK // 8)

    def encode(self, flat: Tensor) -> Parts:
        scale, signs = super().encode(flat)
        if filled := len(flat) % BLOCK:
            # The padding does not count.
            scale[-1] *= BLOCK / filled
        return scale, signs

    def encode_rows(self, rows: Tensor, scratch: Tensor, parts: Parts) -> None:
        scale, signs = parts
        torch.abs(rows, out=scratch)
        torch.sum(scratch, 1, keepdim=True, out=scale).div_(BLOCK)
        # As float32: torch does not vectorise a comparison into bool.
        signs.copy_(pack(torch.ge(rows, 0, out=scratch), 1))

    def decode_rows(self, parts: Parts, out: Tensor) -> None:
        scale, signs = parts
        # 1 becomes the scale, 0 its negative.
        unpack(signs, 1, out, signed=False).mul_(2 * scale).sub_(scale)
