"""Numbers as messages of bytes: as they are, or encoded."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import torch
from torch import Tensor

from caat.compression.codec import Codec
from caat.compression.feedback import Feedback
from caat.compression.framing import Framing


class Messages(Protocol):
    """Turns flat numbers into a uint8 tensor and back."""

    def encode(self, key: Hashable, flat: Tensor) -> Tensor:
        """Encode ``flat`` [n]. ``key`` tells apart the messages of a step."""
        ...

    def decode(self, message: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """Return the ``n`` numbers in float32; ``dtype`` is the type in which they were encoded."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether the bytes of a message depend only on how many numbers it holds."""
        ...

    def length(self, n: int, dtype: torch.dtype) -> int:
        """Return the bytes of ``n`` numbers, if they are fixed."""
        ...


class Exact:
    """Numbers in their own type."""

    def encode(self, key: Hashable, flat: Tensor) -> Tensor:
        return flat.contiguous().view(torch.uint8)

    def decode(self, message: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        return message.view(dtype).float()

    fixed = True

    def length(self, n: int, dtype: torch.dtype) -> int:
        return n * dtype.itemsize


class Encoded:
    """Numbers encoded by ``codec``, whose name is ``spec``."""

    def __init__(self, codec: Codec, spec: str, feedback: Feedback | None = None) -> None:
        self._codec, self._framing, self._feedback = codec, Framing(spec), feedback

    def encode(self, key: Hashable, flat: Tensor) -> Tensor:
        if len(flat) == 0:
            return flat.new_empty(0, dtype=torch.uint8)
        parts = self._feedback.encode(key, flat) if self._feedback else self._codec.encode(flat)
        return self._framing.join(parts)

    def decode(self, message: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        if n == 0:
            return message.new_empty(0, dtype=torch.float32)
        return self._codec.decode(self._framing.split(message, n), n)

    @property
    def fixed(self) -> bool:
        return self._framing.fixed

    def length(self, n: int, dtype: torch.dtype) -> int:
        return self._framing.bytes(n) if n else 0
