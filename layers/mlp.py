"""SwiGLU MLP (arXiv 2002.05202) with inner features split over the shards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caat.parallel.mesh import Mesh
from caat.parallel.partial.pointwise import compiling
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
    if rstd is None and torch.is_grad_enabled() and not compiling():
        return _SwiGLU.apply(gate_up, shards)
    gate, up = (scaled(part, rstd) for part in _gate_and_up(gate_up, shards))
    return (F.silu(gate) * up).flatten(-2)


class _SwiGLU(torch.autograd.Function):
    """The same, with a backward pass that writes the gradients of gate and up side by side at once."""

    @staticmethod
    def forward(ctx, gate_up: Tensor, shards: int) -> Tensor:  # type: ignore[override]
        gate, up = _gate_and_up(gate_up, shards)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return (activated * up).flatten(-2)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        gate_up, activated = ctx.saved_tensors
        shards = activated.shape[-2]
        gate, up = _gate_and_up(gate_up, shards)
        both = torch.empty_like(gate_up)
        gate_grad, up_grad = _gate_and_up(both, shards)
        grad = grad.unflatten(-1, (shards, -1))
        torch.mul(grad, activated, out=up_grad)
        torch.mul(grad, up, out=gate_grad)
        torch.ops.aten.silu_backward(gate_grad, gate, grad_input=gate_grad)
        return both, None


def _gate_and_up(gate_up: Tensor, shards: int) -> tuple[Tensor, ...]:
    """View [..., r · 2c] as two of [..., r, c]."""
    return gate_up.unflatten(-1, (shards, 2, -1)).unbind(-2)
