"""The interface of a codec: a flat message of floats to a few smaller tensors, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from caat.compression.randomness import Counter

Parts = tuple[Tensor, ...]
Shapes = Sequence[tuple[int, ...]]
# How encoded messages are summed over ranks. sliced: each rank owns a slice, decodes and adds it, and encodes
# the sum again. gathered: every rank decodes and adds all messages. linear: the parts themselves are summed.
Way = Literal["sliced", "gathered", "linear"]


class Codec(ABC):
    """Encodes a flat message of n floats. A message that contains nan or inf decodes to one that does.

    ``biased``: the expected decoded message differs from the message, so training needs error feedback.
    ``exact_size``: :meth:`size` is exact; otherwise it is the mean over messages with independent entries.
    """

    way: Way = "sliced"
    biased = True
    exact_size = True
    # Whether :meth:`memory` fills.
    remembers = False
    # Whether ranks decode each other's messages with random numbers of their own, which must be the same.
    same_draws = False
    # Numbers the random draws; make_codec sets it.
    counter: Counter
    # Shapes of the tensors that a message concatenates. A message of another length is of unknown shapes.
    # Codecs of single numbers ignore them.
    shapes: Shapes = ()

    @abstractmethod
    def encode(self, flat: Tensor) -> Parts:
        """Encode ``flat`` [n], of any floating type."""

    @abstractmethod
    def decode(self, parts: Parts, n: int) -> Tensor:
        """Return the message [n] in float32."""

    @abstractmethod
    def size(self, n: int) -> int:
        """Return the bytes of the parts of a message of ``n`` numbers."""

    def memory(self) -> dict[tuple[Hashable, int], Tensor]:
        """Return what the codec keeps from one message to the next, by the key and length of the message."""
        return {}


class Linear(Codec):
    """A codec whose parts, apart from what all ranks share, can be summed before they are decoded."""

    way: Way = "linear"
    same_draws = True

    @abstractmethod
    def reduce(self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the decoded sum of all ranks' messages [n], and this rank's contribution to it.

        ``total`` sums a tensor over the ranks. Successive messages with the same ``key`` resemble each other.
        """

    @abstractmethod
    def summed_sizes(self, n: int) -> tuple[int, ...]:
        """Return the bytes of each part that is summed over the ranks, for a message of ``n`` numbers."""


class Plain(Codec):
    """``none``: float32 as it is."""

    biased = False

    def encode(self, flat: Tensor) -> Parts:
        return (flat.float(),)

    def decode(self, parts: Parts, n: int) -> Tensor:
        return parts[0][:n]

    def size(self, n: int) -> int:
        return 4 * n


class BFloat16(Codec):
    """``bfloat16``: rounded to the nearest of 8 bits of mantissa."""

    def encode(self, flat: Tensor) -> Parts:
        return (flat.to(torch.bfloat16),)

    def decode(self, parts: Parts, n: int) -> Tensor:
        return parts[0][:n].float()

    def size(self, n: int) -> int:
        return 2 * n
