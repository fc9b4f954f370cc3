"""What training, saving and resuming ask of an optimizer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from caat.optim.kinds import StateKind


class Optimizer(torch.optim.Optimizer):
    """A base beside one of torch's optimizers: ``class AdamW(Optimizer, torch.optim.AdamW)``.

    DeepSpeed hands its ranges of the weights to :meth:`step`, and :meth:`shared_state` tells what belongs
    to them.
    """

    # Both stand in checkpoints.
    name: ClassVar[str]
    kinds: ClassVar[tuple[StateKind, ...]]
    # Set by the engine where a step is not good: DeepSpeed checks gradients itself, but not the loss.
    skip = False

    def step(self, closure=None):  # type: ignore[override]
        return None if self.skip else super().step(closure)

    @property
    def steps(self) -> int:
        """Steps taken: those that were not skipped. Set when resuming, after the state is there."""
        raise NotImplementedError

    @steps.setter
    def steps(self, steps: int) -> None:
        raise NotImplementedError

    def shared_state(self, weight: Tensor) -> dict[str, Tensor]:
        """The shared kinds of ``weight``, live, each of its shape; made if they are not there yet.

        ``weight`` is one of ``param_groups``: a parameter, or a flat range of several of them.
        """
        raise NotImplementedError

    def replica_state(self, kind: str) -> dict[str, Tensor]:
        """One kind of which each replica has its own copy, live: this process's part.

        By parameter, the whole of it as this process holds it before ZeRO; without the weights' shape, flat
        tensors by names of the optimizer's own, the same on all processes.
        """
        raise NotImplementedError
