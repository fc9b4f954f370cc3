"""The kinds of state that optimizers keep. Imports no torch: sizes are planned before processes start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.optim import OptimConfig


@dataclass(frozen=True)
class StateKind:
    """One kind of float32 state, by its name in checkpoints."""

    name: str
    # True: one copy for all replicas, which ZeRO partitions over them. False: each replica has its own copy.
    shared: bool = True
    # True: the shape of the weight. False: flat tensors with names and sizes that the optimizer chooses.
    shaped: bool = True
    # True: each island has its own copy, which ZeRO partitions over the replicas of the island.
    island: bool = False

    def __post_init__(self) -> None:
        assert self.shaped or not self.shared, f"{self.name}: ZeRO cuts only what has the shape of a weight"

    def copies(self, replicas: int, islands: int = 1) -> int:
        """Return the number of copies in a run with ``replicas`` replicas on all its ``islands`` together."""
        if not self.shared:
            return replicas
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


def saved_numbers(kinds: Sequence[StateKind], replicas: int = 1) -> int:
    """Return how many numbers a checkpoint holds per weight, the weight itself included."""
    return 1 + sum(1 if kind.shared else replicas for kind in kinds if kind.shaped)
