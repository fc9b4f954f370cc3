"""The parameter groups of all optimizers: weight decay on matrices only."""

from __future__ import annotations

from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return groups that decay matrices (linears, embedding and head, like Megatron) but not norm weights.

    Matrices are cut over the tensor-parallel processes, and norm weights are replicated on them.
    """
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.dim() > 1]
    norms = [p for p in parameters if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay, "replicated": False},
        {"params": norms, "weight_decay": 0.0, "replicated": True},
    ]
