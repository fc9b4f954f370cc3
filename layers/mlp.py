"""SwiGLU MLP (arXiv 2002.05202) with inner features split over the shards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import AnyStream
from conf.model import ModelConfig
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.norm import Normed, scaled


class MLP(nn.Module):
    """x + mlp(norm(x)); gate and up are one column-parallel GEMM, down is row-parallel."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, ratio: float, private_scale: float, recompute: bool
    ) -> None:
        super().__init__()
        self.recompute, self.shards = recompute, mesh.local
        self.gate_up = ColumnParallelLinear(config.hidden, (config.ffn, config.ffn), mesh)
        self.down = RowParallelLinear(config.ffn, config.hidden, mesh, ratio, private_scale)

    def forward(self, normed: Normed) -> AnyStream:
        x, gate_up, rstd = self.gate_up.unscaled_after_norm(normed)
        if self.recompute:
            return self.down.before_norm(checkpoint(self.core, gate_up, rstd, use_reentrant=False), x)
        return self.down.before_norm(self.core(gate_up, rstd), x)

    def core(self, gate_up: Tensor, rstd: Tensor | None = None) -> Tensor:
        """[batch, seq, r · 2c] -> [batch, seq, r · c]: all work between the two GEMMs, all local.

        ``rstd`` [batch, seq, r] is a factor that ``gate_up`` is still to be multiplied by.
        """
        return swiglu(gate_up, self.shards, rstd)


def swiglu(gate_up: Tensor, shards: int, rstd: Tensor | None = None) -> Tensor:
    """Return silu(gate) · up, where each of r ``shards`` has gate and up: [..., r · 2c] -> [..., r · c]."""
    gate, up = (scaled(part, rstd) for part in gate_up.unflatten(-1, (shards, 2, -1)).unbind(-2))
    return (F.silu(gate) * up).flatten(-2)
