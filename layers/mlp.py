"""SwiGLU MLP (arXiv 2002.05202), inner features cut over the shards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caat.parallel.mesh import Mesh
from caat.parallel.stream import Arriving
from conf.model import ModelConfig
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.norm import Normed


class MLP(nn.Module):
    """x + mlp(norm(x)); gate and up are one column-parallel GEMM, down is row-parallel."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, ratio: float, private_scale: float, recompute: bool
    ) -> None:
        super().__init__()
        self.recompute, self.shards = recompute, mesh.local
        self.gate_up = ColumnParallelLinear(config.hidden, (config.ffn, config.ffn), mesh)
        self.down = RowParallelLinear(config.ffn, config.hidden, mesh, ratio, private_scale)

    def forward(self, normed: Normed) -> Arriving:
        x, gate_up = self.gate_up.after_norm(normed)
        if self.recompute:
            return self.down.before_norm(checkpoint(self.core, gate_up, use_reentrant=False), x)
        return self.down.before_norm(self.core(gate_up), x)

    def core(self, gate_up: Tensor) -> Tensor:
        """[batch, seq, r · 2c] -> [batch, seq, r · c]: all between the two GEMMs, all local."""
        return swiglu(gate_up, self.shards)


def swiglu(gate_up: Tensor, shards: int) -> Tensor:
    """silu(gate) · up, each of r ``shards`` with its gate beside its up: [..., r · 2c] -> [..., r · c]."""
    gate, up = gate_up.unflatten(-1, (shards, 2, -1)).unbind(-2)
    return (F.silu(gate) * up).flatten(-2)
