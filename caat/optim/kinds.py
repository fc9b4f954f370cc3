"""The kinds of state that optimizers keep. Imports no torch: sizes are planned before processes start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.optim import OptimConfig


@dataclass(frozen=True)
class StateKind:
    """One kind of float32 state in the shape of the weights, by its name in checkpoints.

    There is one copy, or one for each ``island``; ZeRO partitions it over the replicas.
    """

    name: str
    island: bool = False

    def copies(self, islands: int) -> int:
        return islands if self.island else 1


# The float32 master weights. Every optimizer has them, so none declares them.
WEIGHT = StateKind("weight")
# The kinds that each optimizer declares, by its name. SGD without momentum has none: see :func:`kinds_of`.
DECLARED: dict[str, tuple[StateKind, ...]] = {
    # The first and second moment of the gradient.
    "adamw": (StateKind("exp_avg"), StateKind("exp_avg_sq")),
    # The same moments.
    "lamb": (StateKind("exp_avg"), StateKind("exp_avg_sq")),
    # The running sum of the gradients.
    "sgd": (StateKind("momentum_buffer"),),
}


def kinds_of(optim: OptimConfig) -> tuple[StateKind, ...]:
    """Return the kinds of the optimizer that these settings choose."""
    return () if optim.name == "sgd" and optim.momentum == 0 else DECLARED[optim.name]


def saved_numbers(kinds: Sequence[StateKind]) -> int:
    """Return how many numbers a checkpoint holds per weight, the weight itself included."""
    return 1 + len(kinds)
