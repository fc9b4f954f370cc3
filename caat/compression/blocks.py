"""Codecs of blocks of 256 numbers. On a CPU, they encode as many blocks at a time as its cache holds."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.compression.codec import Codec, Parts
from conf.codec import BLOCK

# Blocks per chunk on a CPU (1 MiB of float32), so that all passes but the first read the cache. With smaller
# chunks, the fixed cost of more calls of torch dominates: 1024 is the fastest of 16 to 4096.
CHUNK = 1024


class BlockCodec(Codec):
    """Parts have one row per block, and no block depends on another.

    ``layout``: the type and the number of columns of each part.
    """

    layout: tuple[tuple[torch.dtype, int], ...]

    @abstractmethod
    def encode_rows(self, rows: Tensor, scratch: Tensor, parts: Parts) -> None:
        """Encode float32 ``rows`` [blocks, 256] into ``parts``; ``scratch`` is memory of the same shape."""

    @abstractmethod
    def decode_rows(self, parts: Parts, out: Tensor) -> None:
        """Decode into ``out``, float32 [blocks, 256]."""

    @torch.no_grad()
    def encode(self, flat: Tensor) -> Parts:
        chunks = _chunks(flat)
        sizes = [len(rows) for rows in chunks]
        parts = tuple(
            torch.empty(sum(sizes), columns, dtype=dtype, device=flat.device)
            for dtype, columns in self.layout
        )
        scratch = torch.empty(max(sizes), BLOCK, device=flat.device)
        for rows, *places in zip(chunks, *(part.split(sizes) for part in parts), strict=True):
            self.encode_rows(rows.float(), scratch[: len(rows)], tuple(places))
        return parts

    @torch.no_grad()
    def decode(self, parts: Parts, n: int) -> Tensor:
        out = torch.empty(_count(n), BLOCK, device=parts[0].device)
        step = _step(out.device, n)
        for rows, *places in zip(out.split(step), *(part.split(step) for part in parts), strict=True):
            self.decode_rows(tuple(places), rows)
        return out.view(-1)[:n]

    def size(self, n: int) -> int:
        return _count(n) * sum(columns * dtype.itemsize for dtype, columns in self.layout)


def _count(n: int) -> int:
    """Return the number of blocks of ``n`` numbers. The last block is padded with zeros."""
    return -(-n // BLOCK)


def _chunks(flat: Tensor) -> list[Tensor]:
    """[n] -> chunks [blocks, 256]."""
    *chunks, last = flat.split(_step(flat.device, len(flat)) * BLOCK)
    if missing := -len(last) % BLOCK:
        last = F.pad(last, (0, missing))
    return [chunk.view(-1, BLOCK) for chunk in (*chunks, last)]


def _step(device: torch.device, n: int) -> int:
    """Return the number of blocks per chunk: on a GPU, all blocks of the ``n`` numbers."""
    return CHUNK if device.type == "cpu" else max(1, _count(n))
