"""Encoded parts as one message of bytes, and back."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from caat.compression.codec import Parts
from caat.compression.spec import make_codec
from conf.codec import BLOCK


class Framing:
    """Joins the parts of a codec into one uint8 tensor, so that each message is sent at once.

    The receiver knows the types of the parts, and their shapes if these depend only on the number of numbers
    n. Otherwise the message begins with the first dimension of each part, as int64.
    """

    def __init__(self, spec: str) -> None:
        # A codec of its own, because encoding changes the state of some codecs.
        self._codec = make_codec(spec)
        self._parts: dict[int, list[tuple[torch.dtype, tuple[int, ...]]]] = {}

    @property
    def fixed(self) -> bool:
        """Whether the bytes depend only on n."""
        return self._codec.exact_size

    def bytes(self, n: int) -> int:
        """Return the bytes of a message of ``n`` numbers, if they depend only on ``n``."""
        assert self.fixed
        return self._codec.size(n)

    def join(self, parts: Parts) -> Tensor:
        """Return the bytes of ``parts``."""
        pieces = [part.contiguous().view(-1).view(torch.uint8) for part in parts]
        if not self.fixed:
            lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64).view(torch.uint8)
            pieces.insert(0, lengths.to(parts[0].device))
        return torch.cat(pieces)

    def split(self, message: Tensor, n: int) -> Parts:
        """Return the parts in the bytes ``message`` of ``n`` numbers."""
        layout, at = self._layout(n), 0
        if not self.fixed:
            at = 8 * len(layout)
            lengths = message[:at].cpu().view(torch.int64).tolist()
            layout = [(dtype, (k, *shape[1:])) for k, (dtype, shape) in zip(lengths, layout, strict=True)]
        parts = []
        for dtype, shape in layout:
            size = prod(shape) * dtype.itemsize
            piece = message[at : at + size]
            # A view of another type must begin at a multiple of its size.
            aligned = piece if (message.storage_offset() + at) % dtype.itemsize == 0 else piece.clone()
            parts.append(aligned.view(dtype).view(shape))
            at += size
        return tuple(parts)

    def _layout(self, n: int) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        # Types and trailing dimensions do not depend on n.
        key = n if self.fixed else BLOCK
        if key not in self._parts:
            parts = self._codec.encode(torch.zeros(key))
            self._parts[key] = [(part.dtype, tuple(part.shape)) for part in parts]
        return self._parts[key]
