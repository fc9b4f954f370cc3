"""The optimizer that the settings choose."""

from __future__ import annotations

from torch import nn

from caat.optim.adamw import AdamW
from caat.optim.lamb import LAMB
from caat.optim.optimizer import Optimizer
from caat.optim.sgd import SGD
from caat.optim.slamb import SLAMB
from caat.parallel.mesh import Mesh
from conf.islands import IslandsConfig
from conf.optim import OptimConfig


def make_optimizer(
    model: nn.Module, optim: OptimConfig, mesh: Mesh, islands: IslandsConfig | None = None, *, seed: int = 0
) -> Optimizer:
    """Return the optimizer named ``optim.name`` for the parameters of ``model``.

    Between several islands, LAMB becomes SLAMB if that is their method.
    """
    if islands is not None and islands.method == "slamb" and mesh.islands.processes > 1:
        return SLAMB(model, optim, mesh, rho=islands.rho, beta3=islands.beta3, seed=seed)
    if optim.name == "lamb":
        return LAMB(model, optim, mesh)
    return {"adamw": AdamW, "sgd": SGD}[optim.name](model, optim)
