"""torch's AdamW, with weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caat.optim.groups import decay_groups
from caat.optim.kinds import DECLARED
from caat.optim.optimizer import Optimizer
from conf.optim import OptimConfig


class AdamW(Optimizer, torch.optim.AdamW):
    """torch's AdamW, whose moments are shared by all replicas."""

    name = "adamw"
    kinds = DECLARED[name]

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        super().__init__(
            decay_groups(model, optim.weight_decay),
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            eps=optim.eps,
            # One pass over weights, gradients and moments instead of one per operator.
            fused=True if next(model.parameters()).is_cuda else None,
        )

    @property
    def steps(self) -> int:
        return max((int(state["step"]) for state in self.state.values() if "step" in state), default=0)

    @steps.setter
    def steps(self, steps: int) -> None:
        # AdamW's bias correction of the moments depends on the step.
        for state in self.state.values():
            state["step"].fill_(steps)

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            # Initialise like AdamW's first step. The fused implementation keeps its counter on the GPU.
            state["step"] = torch.zeros((), device=weight.device if self.defaults["fused"] else "cpu")
            for kind in ("exp_avg", "exp_avg_sq"):
                state[kind] = torch.zeros_like(weight)
        return {kind: state[kind] for kind in ("exp_avg", "exp_avg_sq")}
