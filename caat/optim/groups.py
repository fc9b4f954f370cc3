"""The parameter groups of all optimizers: weight decay on matrices only."""

from __future__ import annotations

from torch import nn

from caat.parallel.sharding import sharded_parameters


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return groups that decay matrices (linears, embedding and head, like Megatron), but no vectors.

    Matrices and biases are cut over the tensor-parallel processes, and norm weights are replicated on them. A
    model without biases has no group of them.
    """
    parameters = list(model.parameters())
    sharded = {parameter for _, parameter, _ in sharded_parameters(model)}
    matrices = [p for p in parameters if p.dim() > 1]
    biases = [p for p in parameters if p.dim() <= 1 and p in sharded]
    norms = [p for p in parameters if p.dim() <= 1 and p not in sharded]
    groups = [{"params": matrices, "weight_decay": weight_decay, "matrices": True, "replicated": False}]
    if biases:
        groups.append({"params": biases, "weight_decay": 0.0, "matrices": False, "replicated": False})
    groups.append({"params": norms, "weight_decay": 0.0, "matrices": False, "replicated": True})
    return groups
