"""``powersgd:R``: a matrix as a product of two thin ones (PowerSGD, Vogels et al. 2019, arXiv 1905.13727).

    P = M Q,  P <- orthonormal P,  Q = M^T P,  C(M) = P Q^T        algorithm 1; Q starts the next message

The message is viewed as a matrix as near to square as its length allows, because ZeRO's messages are ranges
of many parameters, whose own shapes are lost.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.compression.codec import Codec, Parts, Way
from caat.compression.randomness import Counter


class PowerSGD(Codec):
    """R (rows + columns) numbers; exact if R is at least min(rows, columns)."""

    way: Way = "linear"

    def __init__(self, rank: int, counter: Counter) -> None:
        self.rank, self.counter = rank, counter
        # The factor that starts the next iteration, by the length of the message.
        self.q: dict[int, Tensor] = {}

    def encode(self, flat: Tensor) -> Parts:
        return self._factors(flat, lambda factor: factor)

    def reduce(self, flat: Tensor, total: Callable[[Tensor], Tensor]) -> Parts:
        """Return the factors of the sum of all ranks' messages; ``total`` sums a tensor over the ranks."""
        return self._factors(flat, total)

    def decode(self, parts: Parts, n: int) -> Tensor:
        p, q = parts
        return (p @ q.T).view(-1)[:n]

    def size(self, n: int) -> int:
        rows, columns = _shape(n)
        return 4 * self._rank(n) * (rows + columns)

    def _rank(self, n: int) -> int:
        return min(self.rank, *_shape(n))

    def _factors(self, flat: Tensor, total: Callable[[Tensor], Tensor]) -> Parts:
        n, (rows, columns) = len(flat), _shape(len(flat))
        matrix = F.pad(flat.float(), (0, rows * columns - n)).view(rows, columns)
        if n not in self.q:
            generator = self.counter.generator(self.counter.next(), flat.device)
            shape = (columns, self._rank(n))
            self.q[n] = torch.randn(shape, generator=generator, device=flat.device)
        p = total(matrix @ self.q[n])
        # QR may not terminate on numbers that are not finite.
        finite = bool(p.isfinite().all())
        p = torch.linalg.qr(p).Q if finite else torch.full_like(p, torch.nan)
        q = total(matrix.T @ p)
        if finite and bool(q.isfinite().all()):
            self.q[n] = q
        return p, q


def _shape(n: int) -> tuple[int, int]:
    """Return the rows and columns of the matrix of ``n`` numbers."""
    rows = max(1, isqrt(n))
    return rows, -(-n // rows)
