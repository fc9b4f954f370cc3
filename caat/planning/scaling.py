"""Scaling laws: the model and the tokens that make the best use of an amount of arithmetic.

All assume C = 6 N D FLOPs for N parameters and D tokens. Hoffmann et al. (arXiv 2203.15556) fitted theirs to
models of 70 M to 16 B parameters and up to 500 B tokens; everything beyond is an extrapolation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# The largest model of the experiments, in parameters.
LARGEST_FITTED = 16e9


@dataclass(frozen=True)
class ScalingLaw:
    """A law by its ``parameters`` (flops) -> N; ``source`` says where it comes from."""

    source: str
    parameters: Callable[[float], float]

    def tokens(self, flops: float) -> float:
        """Return the tokens D of a training of ``flops`` FLOPs."""
        return flops / (6 * self.parameters(flops))

    def flops(self, parameters: float) -> float:
        """Return the FLOPs for which ``parameters`` are the best size, by bisection."""
        low, high = 1.0, 1e60
        while high / low > 1 + 1e-12:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.parameters(middle) < parameters else (low, middle)
        return high


def _power(exponent: float, *, flops: float, parameters: float = 1e12) -> Callable[[float], float]:
    """Return N = ``parameters`` (C / ``flops``)^``exponent``."""
    return lambda budget: parameters * (budget / flops) ** exponent


def _parametric(budget: float) -> float:
    """Return the N that minimises E + A / N^alpha + B / D^beta at C = 6 N D (equation 4 of the paper).

    The exponents have the digits of the paper's source, of which it prints 0.34 and 0.28.
    """
    a, b, alpha, beta = 406.4, 410.7, 0.3392, 0.2849
    scale = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return scale * (budget / 6) ** (beta / (alpha + beta))


def _twenty_tokens(budget: float) -> float:
    """Return the N of C = 6 N · 20 N."""
    return (budget / 120) ** 0.5


LAWS: Mapping[str, ScalingLaw] = {
    "tokens-20": ScalingLaw("20 tokens a parameter, a rule drawn from arXiv 2203.15556", _twenty_tokens),
    # The size of 10^12 parameters in the paper's tables, and the fitted exponents.
    "hoffmann-1": ScalingLaw("arXiv 2203.15556, approach 1 (table 3)", _power(0.50, flops=1.27e26)),
    "hoffmann-2": ScalingLaw("arXiv 2203.15556, approach 2 (table A3)", _power(0.49, flops=1.59e26)),
    "hoffmann-3": ScalingLaw("arXiv 2203.15556, approach 3 (equation 4)", _parametric),
}
