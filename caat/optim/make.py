"""The optimizer that the settings choose."""

from __future__ import annotations

from torch import nn

from caat.optim.adamw import AdamW
from caat.optim.optimizer import Optimizer
from caat.optim.sgd import SGD
from conf.optim import OptimConfig


def make_optimizer(model: nn.Module, optim: OptimConfig) -> Optimizer:
    """Return the optimizer named ``optim.name`` for the parameters of ``model``."""
    return {"adamw": AdamW, "sgd": SGD}[optim.name](model, optim)
