"""``sign``: one bit a number and the mean magnitude of 256 (EF-signSGD, arXiv 1901.09847).

    C(g) = mean|g| sign(g),  with sign(0) = 1

With error feedback this is 1-bit SGD (Seide et al. 2014), with one scale for both signs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.blocks import BLOCK, blocks, count, pack, packed_bytes, unpack
from caat.compression.codec import Codec, Parts


class Sign(Codec):
    """36 bytes per block."""

    def encode(self, flat: Tensor) -> Parts:
        rows = blocks(flat)
        scale = torch.linalg.vector_norm(rows, 1, 1) / BLOCK
        if filled := len(flat) % BLOCK:
            # The padding does not count.
            scale[-1] *= BLOCK / filled
        return scale, pack((rows >= 0).to(torch.uint8), 1)

    def decode(self, parts: Parts, n: int) -> Tensor:
        scale, signs = parts
        return ((2.0 * unpack(signs, 1) - 1) * scale[:, None]).view(-1)[:n]

    def size(self, n: int) -> int:
        return 4 * count(n) + packed_bytes(n, 1)
