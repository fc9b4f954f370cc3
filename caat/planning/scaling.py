"""Scaling laws: the model and the tokens that make the best use of an amount of arithmetic.

All assume C = 6 N D FLOPs for N parameters and D tokens. Hoffmann et al. (arXiv 2203.15556) fitted theirs to
models of 70 M to 16 B parameters and up to 500 B tokens; everything beyond is an extrapolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The largest model of the experiments, in parameters.
LARGEST_FITTED = 16e9
# The fit of the loss E + A / N^alpha + B / D^beta (equation 4 of the paper). The exponents have the digits of
# the paper's source, of which it prints 0.34 and 0.28.
A, B, ALPHA, BETA = 406.4, 410.7, 0.3392, 0.2849


@dataclass(frozen=True)
class ScalingLaw:
    """N = ``size`` (C / ``at``)^``exponent`` parameters are the best for C FLOPs, says the ``source``."""

    source: str
    exponent: float
    size: float
    at: float

    def parameters(self, flops: float) -> float:
        """Return the N that is the best for ``flops``."""
        return self.size * (flops / self.at) ** self.exponent

    def flops(self, parameters: float) -> float:
        """Return the FLOPs for which ``parameters`` are the best size."""
        return self.at * (parameters / self.size) ** (1 / self.exponent)


LAWS: Mapping[str, ScalingLaw] = {
    # C = 6 N · 20 N.
    "tokens-20": ScalingLaw("20 tokens a parameter, a rule drawn from arXiv 2203.15556", 0.5, 1.0, at=120.0),
    # The size of 10^12 parameters in the paper's tables, and the fitted exponents.
    "hoffmann-1": ScalingLaw("arXiv 2203.15556, approach 1 (table 3)", 0.50, 1e12, at=1.27e26),
    "hoffmann-2": ScalingLaw("arXiv 2203.15556, approach 2 (table A3)", 0.49, 1e12, at=1.59e26),
    # The N that minimises the loss above at C = 6 N D.
    "hoffmann-3": ScalingLaw(
        "arXiv 2203.15556, approach 3 (equation 4)",
        BETA / (ALPHA + BETA),
        (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)),
        at=6.0,
    ),
}
