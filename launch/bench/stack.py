"""The stack of blocks that the communication benchmarks time: ours, and one in Megatron's form.

Both start where an embedding ends and end in a column-parallel head. Each sums 2 messages a layer forward
and 2 backward, and one of all channels beside: Megatron for the head, ours for the embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caat.parallel.collectives import Collectives
from caat.parallel.mesh import Mesh
from caat.parallel.stream import Arriving, Stream, enter
from conf.schema import ModelConfig
from layers.block import Block
from layers.linear import ColumnParallelLinear, shared_channels
from layers.mlp import swiglu
from layers.norm import RMSNorm, norm_weights
from layers.rotary import rotary_angles, rotate


class OurStack(nn.Module):
    """Our blocks at ``ratio``: [batch, seq, hidden] -> this process's part of the loss."""

    def __init__(self, c: ModelConfig, mesh: Mesh, ratio: float) -> None:
        super().__init__()
        self.c, self.mesh = c, mesh
        self.shared_channels = shared_channels(c.hidden, ratio, mesh.shards)
        self.blocks = nn.ModuleList(Block(c, mesh, ratio, None, False) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, mesh, c.norm_eps)
        self.head = ColumnParallelLinear(c.hidden, c.hidden, mesh)

    def forward(self, x: Tensor) -> Tensor:
        gammas = norm_weights(self, self.mesh)
        cos, sin = rotary_angles(x.shape[1], self.c.head_dim, self.c.rope_base, x)
        stream: Stream | Arriving = enter(x, self.shared_channels, self.mesh)
        for block, attention_gamma, mlp_gamma in zip(self.blocks, gammas[0::2], gammas[1::2], strict=False):
            stream = block(stream, attention_gamma, mlp_gamma, cos, sin)
        _, out = self.head.after_norm(self.norm(stream, gammas[-1]))
        return out.square().mean()


class _SumForward(torch.autograd.Function):
    """Megatron's *g*: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, collectives: Collectives) -> Tensor:  # type: ignore[override]
        return collectives.all_reduce(x, "forward", "sync")

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return gradient, None


class _SumBackward(torch.autograd.Function):
    """Megatron's *f*: identity forward, all-reduce of the gradient in its own type backward."""

    @staticmethod
    def forward(ctx, x: Tensor, collectives: Collectives, purpose: str = "sync") -> Tensor:  # type: ignore[override]
        ctx.collectives, ctx.purpose = collectives, purpose
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return ctx.collectives.all_reduce(gradient, "backward", ctx.purpose), None, None


class _MegatronBlock(nn.Module):
    def __init__(self, c: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        self.c, self.mesh = c, mesh
        self.attention_norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.qkv = ColumnParallelLinear(c.hidden, (c.hidden, c.hidden, c.hidden), mesh)
        self.output = nn.Linear(c.hidden // mesh.shards, c.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.gate_up = ColumnParallelLinear(c.hidden, (c.ffn, c.ffn), mesh)
        self.down = nn.Linear(c.ffn // mesh.shards, c.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        messages = self.mesh.tensor
        qkv = F.linear(_SumBackward.apply(self.attention_norm(x), messages), self.qkv.weight)
        q, k, v = qkv.unflatten(-1, (3, -1, self.c.head_dim)).unbind(-3)
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2, 3)
        x = x + _SumForward.apply(self.output(a), messages)
        gate_up = F.linear(_SumBackward.apply(self.mlp_norm(x), messages), self.gate_up.weight)
        return x + _SumForward.apply(self.down(swiglu(gate_up, 1)), messages)


class MegatronStack(nn.Module):
    """Full synchronisation as in Megatron-LM (arXiv 1909.08053, figure 3), every sum waited for."""

    def __init__(self, c: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        self.c, self.mesh = c, mesh
        self.blocks = nn.ModuleList(_MegatronBlock(c, mesh) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.head = ColumnParallelLinear(c.hidden, c.hidden, mesh)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = rotary_angles(x.shape[1], self.c.head_dim, self.c.rope_base, x)
        for block in self.blocks:
            x = block(x, cos, sin)
        out = F.linear(_SumBackward.apply(self.norm(x), self.mesh.tensor, "head"), self.head.weight)
        return out.square().mean()
