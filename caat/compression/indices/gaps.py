"""``index=huffman``: Huffman codes of the gaps between indices (DeepReduce's codec of deltas).

A gap below 255 takes one byte, a longer one 255 and four bytes; zlib codes the bytes, without looking for
matches. The gaps of random indices at density r are geometric. At r of about 0.01 to 0.5 they take about
H(r) / r bits each, where H is the binary entropy; a denser index takes a bit, and long gaps take more.
"""

from __future__ import annotations

import zlib
from heapq import heappop, heappush

import numpy as np
import torch
from torch import Tensor

from caat.compression.codec import Parts
from caat.compression.indices.index import IndexCodec

LONG = 255
# About as many bytes are zlib's tables of codes, and the number of indices.
AROUND = 80


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
        """Return the mean bytes of the codes of random indices, and of the stream around them."""
        if count == 0:
            return AROUND
        others = 1 - count / n
        gap = np.arange(256)
        bytes_ = count * (1 - others) * others**gap
        bytes_[LONG] = long = count * others**LONG
        for place in range(4):
            # The excess of a long gap is again geometrically distributed, and so is each of its bytes.
            less = others ** (256.0**place)
            bytes_ += long * less**gap / (less**gap).sum()
        # The end of the stream is a symbol, too.
        return AROUND + _huffman_bits([*bytes_, 1.0]) // 8


def _huffman_bits(counts: list[float]) -> int:
    """Return the bits of all symbols in their Huffman codes."""
    heap, bits = sorted(each for each in counts if each > 0), 0.0
    while len(heap) > 1:
        both = heappop(heap) + heappop(heap)
        bits += both
        heappush(heap, both)
    return round(bits)
