"""Codecs that send some of the numbers with their indices: ``topk:K``, ``threshold:T``, ``randomk:K``.

Indices and values each have their own codec (DeepReduce, NeurIPS 2021): ``index=``, ``values=``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from caat.compression.codec import Codec, Linear, Parts, Way
from caat.compression.indices.index import IndexCodec
from caat.compression.randomness import Counter
from caat.compression.values.value import ValueCodec


class Selector(ABC):
    """Chooses the numbers that are sent."""

    # Whether the count depends only on the length of the message.
    fixed = True

    @abstractmethod
    def choose(self, flat: Tensor) -> Tensor:
        """Return ascending int64 indices into ``flat``."""

    @abstractmethod
    def count(self, n: int) -> int:
        """Return how many of ``n`` are chosen; the mean if that depends on the message."""


class TopK(Selector):
    """``topk:K``: the share K of largest magnitude (Aji and Heafield 2017, arXiv 1704.05021).

    |g - C(g)|^2 <= (1 - k / n) |g|^2 for the k of n numbers that are sent: k = round(K n), at least 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def choose(self, flat: Tensor) -> Tensor:
        # topk treats nan as the largest.
        return flat.abs().topk(self.count(len(flat)), sorted=False).indices.sort().values

    def count(self, n: int) -> int:
        return min(n, max(1, round(self.share * n)))


class Threshold(Selector):
    """``threshold:T``: all numbers of magnitude T or more (Dutta et al. 2020, arXiv 1911.08250)."""

    fixed = False

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.chosen = self.seen = 0

    def choose(self, flat: Tensor) -> Tensor:
        indices = (~(flat.abs() < self.threshold)).nonzero().squeeze(1)
        self.chosen, self.seen = self.chosen + len(indices), self.seen + len(flat)
        return indices

    def count(self, n: int) -> int:
        """Return the count at the mean density of earlier messages; ``n`` before the first."""
        return round(n * self.chosen / self.seen) if self.seen else n


class RandomK(Selector):
    """``randomk:K``: a random share K, without replacement (Stich et al. 2018, arXiv 1809.07599).

    E|g - C(g)|^2 = (1 - k / n) |g|^2 for the k of n numbers that are sent: k = round(K n), at least 1.
    """

    def __init__(self, share: float, counter: Counter) -> None:
        self.share, self.counter = share, counter

    def choose(self, flat: Tensor) -> Tensor:
        return self.draw(self.counter.next(), len(flat), flat.device)

    def draw(self, number: int, n: int, device: torch.device) -> Tensor:
        """Return the indices of the draw ``number``: the same for a seed on every rank."""
        drawn = torch.rand(n, generator=self.counter.generator(number, device), device=device)
        return drawn.topk(self.count(n), sorted=False).indices.sort().values

    def count(self, n: int) -> int:
        return min(n, max(1, round(self.share * n)))


class Sparse(Codec):
    """The numbers that ``selector`` chooses, with their indices. Every rank chooses for itself."""

    way: Way = "gathered"

    def __init__(self, selector: Selector, index: IndexCodec, values: ValueCodec) -> None:
        self.selector, self.index, self.values = selector, index, values
        self.exact_size = selector.fixed and index.exact_size and values.exact_size

    def encode(self, flat: Tensor) -> Parts:
        n = len(flat)
        chosen = self.index.encode(self.selector.choose(flat), n)
        # A Bloom filter returns more indices than it was given: their values are sent too.
        values = poisoned(flat.float()[self.index.decode(chosen, n)], flat)
        return *chosen, *self.values.encode(values)

    def decode(self, parts: Parts, n: int) -> Tensor:
        split = self.index.parts
        indices = self.index.decode(parts[:split], n)
        message = torch.zeros(n, device=indices.device)
        message[indices] = self.values.decode(parts[split:], len(indices))
        return message

    def size(self, n: int) -> int:
        chosen = self.selector.count(n)
        return self.index.size(n, chosen) + self.values.size(self.index.returned(n, chosen))


class Shared(Linear):
    """The numbers that ``selector`` chooses on all ranks alike: the number of its draw replaces the indices.

    The values, as float32, can be summed before they are decoded; encoded values cannot.
    """

    def __init__(self, selector: RandomK, values: ValueCodec) -> None:
        self.selector, self.values = selector, values
        self.exact_size = values.exact_size
        self.way: Way = "linear" if values.linear else "gathered"

    def encode(self, flat: Tensor) -> Parts:
        number = self.selector.counter.next()
        chosen = self.selector.draw(number, len(flat), flat.device)
        values = poisoned(flat.float()[chosen], flat)
        return torch.tensor([number], device=flat.device), *self.values.encode(values)

    def decode(self, parts: Parts, n: int) -> Tensor:
        number, *values = parts
        chosen = self.selector.draw(int(number), n, number.device)
        message = torch.zeros(n, device=number.device)
        message[chosen] = self.values.decode(tuple(values), len(chosen))
        return message

    def reduce(self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        number, values = self.encode(flat)
        summed = total(values.clone())
        return self.decode((number, summed), len(flat)), self.decode((number, values), len(flat))

    def size(self, n: int) -> int:
        return 8 + self.values.size(self.selector.count(n))

    def summed_sizes(self, n: int) -> tuple[int, ...]:
        # Ranks count draws alike, so their number is not sent.
        return (self.values.size(self.selector.count(n)),)


def poisoned(values: Tensor, flat: Tensor) -> Tensor:
    """Return ``values``, with nan in the first if any number in ``flat`` is not finite."""
    if len(values):
        # Zero times a finite number is zero.
        values[0] += (flat.float() * 0).sum()
    return values
