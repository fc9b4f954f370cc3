"""The interface of a codec of indices, and the two of fixed size: ``index=raw`` and ``index=bitmap``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from caat.compression.codec import Parts
from caat.compression.packing import pack, unpack


class IndexCodec(ABC):
    """Encodes ascending indices below n into ``parts`` tensors."""

    parts = 1
    exact_size = True

    @abstractmethod
    def encode(self, indices: Tensor, n: int) -> Parts: ...

    @abstractmethod
    def decode(self, parts: Parts, n: int) -> Tensor:
        """Return the indices, ascending; some codecs add others."""

    @abstractmethod
    def size(self, n: int, count: int) -> int:
        """Return the bytes for ``count`` indices below ``n``."""

    def returned(self, n: int, count: int) -> int:
        """Return how many indices are decoded if ``count`` were encoded."""
        return count


class Raw(IndexCodec):
    """``index=raw``: 4 bytes an index."""

    def encode(self, indices: Tensor, n: int) -> Parts:
        assert n <= 1 << 32, f"4 bytes cannot number {n:,} values: index=bitmap and index=huffman can"
        return (indices.to(torch.int32),)

    def decode(self, parts: Parts, n: int) -> Tensor:
        # Indices of 2^31 and more are negative in int32.
        return parts[0].long() & 0xFFFFFFFF

    def size(self, n: int, count: int) -> int:
        return 4 * count


class Bitmap(IndexCodec):
    """``index=bitmap``: one bit per number; smaller than raw above a density of 1 in 32."""

    def encode(self, indices: Tensor, n: int) -> Parts:
        bits = torch.zeros(8 * self.size(n, len(indices)), dtype=torch.uint8, device=indices.device)
        bits[indices] = 1
        return (pack(bits[None], 1)[0].clone(),)

    def decode(self, parts: Parts, n: int) -> Tensor:
        bits = torch.empty(1, 8 * len(parts[0]), device=parts[0].device)
        return unpack(parts[0][None], 1, bits, signed=False)[0, :n].nonzero().squeeze(1)

    def size(self, n: int, count: int) -> int:
        return -(-n // 8)
