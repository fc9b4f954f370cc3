"""``index=huffman``: Huffman codes of the gaps between indices (DeepReduce's codec of deltas).

A gap below 255 takes one byte, a longer one 255 and four bytes; zlib codes the bytes, without looking for
matches. The gaps of random indices at density r are geometric: about H(r) / r bits each, where H is the
binary entropy.
"""

from __future__ import annotations

import zlib
from math import log2

import numpy as np
import torch
from torch import Tensor

from caat.compression.codec import Parts
from caat.compression.indices.index import IndexCodec

LONG = 255


class Gaps(IndexCodec):
    """One part: a stream of zlib."""

    exact_size = False

    def encode(self, indices: Tensor, n: int) -> Parts:
        gaps = np.diff(indices.cpu().numpy(), prepend=-1) - 1
        short = np.minimum(gaps, LONG).astype(np.uint8)
        long = gaps[gaps >= LONG].astype("<u4")
        content = np.uint32(len(short)).tobytes() + short.tobytes() + long.tobytes()
        coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
        coded = coder.compress(content) + coder.flush()
        return (torch.frombuffer(bytearray(coded), dtype=torch.uint8).to(indices.device),)

    def decode(self, parts: Parts, n: int) -> Tensor:
        content = zlib.decompress(parts[0].cpu().numpy().tobytes())
        count = int(np.frombuffer(content, "<u4", 1)[0])
        gaps = np.frombuffer(content, np.uint8, count, 4).astype(np.int64)
        gaps[gaps == LONG] = np.frombuffer(content, "<u4", offset=4 + count)
        return torch.from_numpy(np.cumsum(gaps + 1) - 1).to(parts[0].device)

    def size(self, n: int, count: int) -> int:
        if count in (0, n):
            return 4
        r = count / n
        return round(n * -(r * log2(r) + (1 - r) * log2(1 - r)) / 8)
