"""``powersgd:R``: matrices as products of two thin ones (PowerSGD, Vogels et al. 2019, arXiv 1905.13727).

    P = M Q,  P <- orthonormal P,  Q = M^T P,  C(M) = P Q^T        algorithm 1; Q starts the next message

Each matrix of :attr:`Codec.shapes` is encoded by itself, unless its factors are as large as the matrix.
Vectors and these matrices are sent as they are. A message of unknown shapes is one matrix as near to square
as its length allows, which loses much more of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import isqrt, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.compression.codec import Linear, Parts
from caat.compression.randomness import Counter


class Range(NamedTuple):
    """``size`` numbers of a message as a matrix of ``rows`` and ``columns``; ``rank`` 0: sent as they are."""

    size: int
    rows: int
    columns: int
    rank: int

    def matrix(self, numbers: Tensor) -> Tensor:
        """Return ``numbers`` [size] as [rows, columns], zeros at the end."""
        return F.pad(numbers, (0, self.rows * self.columns - self.size)).view(self.rows, self.columns)


class PowerSGD(Linear):
    """R (rows + columns) numbers of each matrix; exact if R is at least min(rows, columns)."""

    remembers = True

    def __init__(self, rank: int, counter: Counter) -> None:
        self.rank, self.counter = rank, counter
        # The factors Q, flat, that start the next iteration, by the key and length of the message.
        self.q: dict[tuple[Hashable, int], Tensor] = {}

    def encode(self, flat: Tensor) -> Parts:
        return self._factors(None, flat, lambda part: part)[0]

    def reduce(self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        summed, own = self._factors(key, flat, total)
        return self.decode(summed, len(flat)), self.decode(own, len(flat))

    def decode(self, parts: Parts, n: int) -> Tensor:
        ranges = self._ranges(n)
        # Filled range by range: joining all products would take twice the memory.
        message = torch.empty(n, device=parts[0].device)
        pieces = message.split([each.size for each in ranges])
        for each, piece, p, q in zip(ranges, pieces, *_split(parts, ranges), strict=True):
            product = p.view(each.rows, each.rank) @ q.view(each.columns, each.rank).T if each.rank else p
            piece.copy_(product.view(-1)[: each.size])
        return message

    def size(self, n: int) -> int:
        return sum(self.summed_sizes(n))

    def summed_sizes(self, n: int) -> tuple[int, ...]:
        return tuple(4 * sum(sizes) for sizes in _sizes(self._ranges(n)))

    def memory(self) -> dict[tuple[Hashable, int], Tensor]:
        return self.q

    def _ranges(self, n: int) -> list[Range]:
        if sum(map(prod, self.shapes)) == n and self.shapes:
            return [self._range(shape) for shape in self.shapes]
        rows = max(1, isqrt(n))
        columns = -(-n // rows)
        return [Range(n, rows, columns, min(self.rank, rows, columns))]

    def _range(self, shape: tuple[int, ...]) -> Range:
        size, rows = prod(shape), shape[0]
        columns = size // rows
        return Range(size, rows, columns, self.rank if self.rank * (rows + columns) < size else 0)

    def _factors(
        self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return P and Q of the sum of all ranks' messages, and P with this rank's contribution to Q.

        P and Q are flat and hold the factors of all ranges; P also holds the numbers sent as they are.
        """
        n, ranges = len(flat), self._ranges(len(flat))
        pieces = flat.float().split([each.size for each in ranges])
        starts = self._start(key, n, ranges, flat.device).split(_sizes(ranges)[1])
        ps = [
            (each.matrix(piece) @ q.view(each.columns, each.rank)).view(-1) if each.rank else piece
            for each, piece, q in zip(ranges, pieces, starts, strict=True)
        ]
        p = total(torch.cat(ps))
        # QR may not terminate on numbers that are not finite.
        finite = bool(p.isfinite().all())
        if not finite:
            p.fill_(torch.nan)
        ps, qs = list(p.split(_sizes(ranges)[0])), list(starts)
        for number, (each, piece) in enumerate(zip(ranges, pieces, strict=True)):
            if each.rank:
                factor = ps[number].view(each.rows, each.rank)
                factor = torch.linalg.qr(factor).Q if finite else factor
                ps[number], qs[number] = factor.reshape(-1), (each.matrix(piece).T @ factor).view(-1)
        own_ps = [p if each.rank else piece for each, p, piece in zip(ranges, ps, pieces, strict=True)]
        own = torch.cat(qs)
        q = total(own.clone()) if len(own) else own
        if finite and bool(q.isfinite().all()):
            self.q[key, n] = q
        return (torch.cat(ps), q), (torch.cat(own_ps), own)

    def _start(self, key: Hashable, n: int, ranges: list[Range], device: torch.device) -> Tensor:
        if (key, n) not in self.q:
            generator = self.counter.generator(self.counter.next(), device)
            numbers = sum(_sizes(ranges)[1])
            self.q[key, n] = torch.randn(numbers, generator=generator, device=device)
        return self.q[key, n]


def _sizes(ranges: list[Range]) -> tuple[list[int], list[int]]:
    """Return the numbers that each range has in P and in Q."""
    p = [each.rank * each.rows if each.rank else each.size for each in ranges]
    return p, [each.rank * each.columns for each in ranges]


def _split(parts: Parts, ranges: list[Range]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    p, q = (part.split(sizes) for part, sizes in zip(parts, _sizes(ranges), strict=True))
    return p, q
