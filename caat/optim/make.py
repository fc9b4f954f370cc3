"""The optimizer that the settings choose."""

from __future__ import annotations

from torch import nn

from caat.optim.adamw import AdamW
from caat.optim.lamb import LAMB
from caat.optim.optimizer import Optimizer
from caat.optim.sgd import SGD
from caat.parallel.mesh import Mesh
from conf.optim import OptimConfig


def make_optimizer(model: nn.Module, optim: OptimConfig, mesh: Mesh) -> Optimizer:
    """Return the optimizer named ``optim.name`` for the parameters of ``model``."""
    if optim.name == "lamb":
        return LAMB(model, optim, mesh)
    return {"adamw": AdamW, "sgd": SGD}[optim.name](model, optim)
