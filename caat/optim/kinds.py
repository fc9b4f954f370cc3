"""What an optimizer keeps for a weight, by name. No torch here: sizes are planned before processes start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.optim import OptimConfig


@dataclass(frozen=True)
class StateKind:
    """One kind of float32 numbers, under the name that it has in a checkpoint."""

    name: str
    # One copy for all replicas, which ZeRO cuts over them; else each replica has a copy of its own.
    shared: bool = True
    # As many numbers as the weight, in its shape; else flat tensors with names and sizes of their own.
    shaped: bool = True

    def __post_init__(self) -> None:
        assert self.shaped or not self.shared, f"{self.name}: ZeRO cuts only what has the shape of a weight"


# The float32 master weights. No optimizer declares them: every one has them.
WEIGHT = StateKind("weight")
# What each optimizer declares, by the optimizer's name.
DECLARED: dict[str, tuple[StateKind, ...]] = {
    # The first and second moment of the gradient.
    "adamw": (StateKind("exp_avg"), StateKind("exp_avg_sq")),
}


def state_kinds(config: OptimConfig) -> tuple[StateKind, ...]:
    """The kinds that the optimizer of these settings declares."""
    return DECLARED["adamw"]


def saved_numbers(kinds: Sequence[StateKind], replicas: int = 1) -> int:
    """Numbers that a checkpoint holds for each number of the weights, which it holds as well."""
    return 1 + sum(1 if kind.shared else replicas for kind in kinds if kind.shaped)
