"""``values=poly``: a polynomial through the sorted values of each run of 256 (Fit-Poly, DeepReduce 2021).

Sorted values lie on a smooth curve, which a polynomial of degree 5 in the rank fits by least squares; one
byte per value holds its rank. Runs of up to 6 values are exact up to the rounding of the largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caat.compression.codec import Parts
from caat.compression.values.value import ValueCodec

RUN, DEGREE = 256, 5


class Poly(ValueCodec):
    """Coefficients, float32 [runs, 6], and ranks, one byte a value. A run that holds nan or inf is nan."""

    def encode(self, values: Tensor) -> Parts:
        if not len(values):
            return values.new_empty(0, DEGREE + 1), values.new_empty(0, dtype=torch.uint8)
        coefficients = [self._fit(run) for run in values.float().split(RUN)]
        ranks = [run.argsort().argsort().to(torch.uint8) for run in values.split(RUN)]
        return torch.stack(coefficients), torch.cat(ranks)

    def decode(self, parts: Parts, count: int) -> Tensor:
        coefficients, ranks = parts
        if not count:
            return coefficients.new_empty(0)
        runs = [
            (_powers(len(run), run.device)[run.long()] @ curve.double()).float()
            for curve, run in zip(coefficients, ranks.split(RUN), strict=True)
        ]
        return torch.cat(runs)

    def size(self, count: int) -> int:
        return 4 * (DEGREE + 1) * -(-count // RUN) + count

    def _fit(self, run: Tensor) -> Tensor:
        if not run.isfinite().all():
            return run.new_full((DEGREE + 1,), torch.nan)
        powers = _powers(len(run), run.device)
        # By the pseudo-inverse: fewer values than coefficients have many solutions.
        return (torch.linalg.pinv(powers) @ run.double().sort().values).float()


def _powers(count: int, device: torch.device) -> Tensor:
    """Chebyshev polynomials [count, 6] of the ranks over [-1, 1]: plain powers would be ill-conditioned."""
    x = torch.linspace(-1, 1, max(count, 2), dtype=torch.float64, device=device)[:count]
    terms = [torch.ones_like(x), x]
    while len(terms) <= DEGREE:
        terms.append(2 * x * terms[-1] - terms[-2])
    return torch.stack(terms, 1)
