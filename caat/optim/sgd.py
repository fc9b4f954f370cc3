"""torch's SGD, with momentum, and weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caat.optim.groups import decay_groups
from caat.optim.kinds import kinds_of
from caat.optim.optimizer import Optimizer
from conf.optim import OptimConfig


class SGD(Optimizer, torch.optim.SGD):
    """torch's SGD; its momentum is shared by all replicas, and without momentum it keeps no state."""

    name = "sgd"

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        super().__init__(
            decay_groups(model, optim.weight_decay),
            lr=optim.lr,
            momentum=optim.momentum,
            fused=True if next(model.parameters()).is_cuda else None,
        )
        self.kinds = kinds_of(optim)

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        for kind in self.kinds:
            # torch's first step copies the gradient instead, which equals adding it to zeros.
            if state.get(kind.name) is None:
                state[kind.name] = torch.zeros_like(weight)
        return {kind.name: state[kind.name] for kind in self.kinds}
