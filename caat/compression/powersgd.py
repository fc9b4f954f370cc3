"""``powersgd:R``: a matrix as a product of two thin ones (PowerSGD, Vogels et al. 2019, arXiv 1905.13727).

    P = M Q,  P <- orthonormal P,  Q = M^T P,  C(M) = P Q^T        algorithm 1; Q starts the next message

The message is viewed as a matrix as near to square as its length allows, because ZeRO's messages are ranges
of many parameters, whose own shapes are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.compression.codec import Linear, Parts
from caat.compression.randomness import Counter


class PowerSGD(Linear):
    """R (rows + columns) numbers; exact if R is at least min(rows, columns)."""

    remembers = True

    def __init__(self, rank: int, counter: Counter) -> None:
        self.rank, self.counter = rank, counter
        # The factor that starts the next iteration, by the key and length of the message.
        self.q: dict[tuple[Hashable, int], Tensor] = {}

    def encode(self, flat: Tensor) -> Parts:
        p, q, _ = self._factors(None, flat, lambda factor: factor)
        return p, q

    def reduce(self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        p, q, own = self._factors(key, flat, total)
        return self.decode((p, q), len(flat)), self.decode((p, own), len(flat))

    def decode(self, parts: Parts, n: int) -> Tensor:
        p, q = parts
        return (p @ q.T).view(-1)[:n]

    def size(self, n: int) -> int:
        return sum(self.summed_sizes(n))

    def summed_sizes(self, n: int) -> tuple[int, ...]:
        rows, columns = _shape(n)
        return 4 * self._rank(n) * rows, 4 * self._rank(n) * columns

    def memory(self) -> dict[tuple[Hashable, int], Tensor]:
        return self.q

    def _rank(self, n: int) -> int:
        return min(self.rank, *_shape(n))

    def _factors(
        self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return P and Q of the sum of all ranks' messages, and this rank's contribution to Q."""
        n, (rows, columns) = len(flat), _shape(len(flat))
        matrix = F.pad(flat.float(), (0, rows * columns - n)).view(rows, columns)
        if (key, n) not in self.q:
            generator = self.counter.generator(self.counter.next(), flat.device)
            shape = (columns, self._rank(n))
            self.q[key, n] = torch.randn(shape, generator=generator, device=flat.device)
        p = total(matrix @ self.q[key, n])
        # QR may not terminate on numbers that are not finite.
        finite = bool(p.isfinite().all())
        p = torch.linalg.qr(p).Q if finite else torch.full_like(p, torch.nan)
        own = matrix.T @ p
        q = total(own.clone())
        if finite and bool(q.isfinite().all()):
            self.q[key, n] = q
        return p, q, own


def _shape(n: int) -> tuple[int, int]:
    """Return the rows and columns of the matrix of ``n`` numbers."""
    rows = max(1, isqrt(n))
    return rows, -(-n // rows)
