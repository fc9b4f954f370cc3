"""The stack of blocks that the communication benchmarks time: ours, and one for any library's linears.

Both start at the embedding's output and end in a column-parallel head. Each sums 2 messages per layer in
forward and 2 in backward, and one more message of all channels: Megatron's for the head, ours for the
embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from caat.parallel.autograd import sum_forward, sum_gradient
from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import enter
from conf.model import ModelConfig
from conf.partition import shared_channels
from layers.attention import attend
from layers.block import Block, norms_of, places_of, run_blocks
from layers.cache import KVCache, LayerCache
from layers.linear import ColumnParallelLinear
from layers.mlp import swiglu
from layers.norm import RMSNorm, norm_weights
from layers.rotary import Angles, rotate

Linears = Callable[[int, int], nn.Module]


class OurStack(nn.Module):
    """Our blocks at ``ratio``: [batch, seq, hidden] -> this process's share of the loss.

    With a cache, the input continues it and the loss is that of the last token.
    """

    def __init__(self, c: ModelConfig, mesh: Mesh, ratio: float) -> None:
        super().__init__()
        self.c, self.mesh = c, mesh
        self.shared_channels = shared_channels(c.hidden, ratio, mesh.shards)
        self.blocks = nn.ModuleList(Block(c, mesh, ratio, 1.0, False) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, mesh, c.norm_eps)
        self.head = ColumnParallelLinear(c.hidden, c.hidden, mesh)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        gammas = norm_weights([*norms_of(self.blocks), self.norm], self.mesh)
        stream = run_blocks(
            self.blocks,
            enter(x, self.shared_channels, self.mesh),
            gammas[:-1],
            places_of(x, self.c, cache),
        )
        normed = self.norm(stream, gammas[-1])
        _, out = self.head.after_norm(normed.last() if cache is not None and x.shape[1] > 1 else normed)
        return out.square().mean()


class ColumnLinear(nn.Module):
    """Megatron's *f*, then a plain linear with this process's outputs."""

    def __init__(self, inputs: int, outputs: int, mesh: Mesh, purpose: str = "sync") -> None:
        super().__init__()
        self.collectives, self.purpose = mesh.tensor, purpose
        self.weight = nn.Parameter(torch.empty(outputs // mesh.processes, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(sum_gradient(x, self.collectives, self.purpose, wide=False), self.weight)


class RowLinear(nn.Module):
    """A plain linear with this process's inputs, then Megatron's *g*."""

    def __init__(self, inputs: int, outputs: int, mesh: Mesh) -> None:
        super().__init__()
        self.collectives = mesh.tensor
        self.weight = nn.Parameter(torch.empty(outputs, inputs // mesh.processes))

    def forward(self, x: Tensor) -> Tensor:
        return sum_forward(F.linear(x, self.weight), self.collectives, "sync")


class PlainBlock(nn.Module):
    """A block built from any library's ``column(inputs, outputs)`` and ``row(inputs, outputs)`` linears."""

    def __init__(self, c: ModelConfig, column: Linears, row: Linears) -> None:
        super().__init__()
        self.head_size = c.head_size
        self.attention_norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.qkv, self.output = column(c.hidden, 3 * c.hidden), row(c.hidden, c.hidden)
        self.mlp_norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.gate_up, self.down = column(c.hidden, 2 * c.ffn), row(c.ffn, c.hidden)

    def forward(self, x: Tensor, angles: Angles, cache: LayerCache | None) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, -1, self.head_size))
        q, k, v = qkv.unbind(-3)
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, *angles), rotate(k, *angles), v))
        x = x + self.output(attend(q, k, v, cache).transpose(1, 2).flatten(2, 3))
        return x + self.down(swiglu(self.gate_up(self.mlp_norm(x)), 1))


class PlainStack(nn.Module):
    """Full synchronisation: [batch, seq, hidden] -> this process's share of the loss, like `OurStack`."""

    def __init__(self, c: ModelConfig, column: Linears, row: Linears, head: Linears) -> None:
        super().__init__()
        self.c = c
        self.blocks = nn.ModuleList(PlainBlock(c, column, row) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.head = head(c.hidden, c.hidden)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        places = places_of(x, self.c, cache)
        for block, layer in zip(self.blocks, places.layers, strict=True):
            x = block(x, places.angles, layer)
        return self.head(self.norm(x if cache is None else x[:, -1:])).square().mean()


def megatron_stack(c: ModelConfig, mesh: Mesh) -> PlainStack:
    """Return full synchronisation as in Megatron-LM (arXiv 1909.08053, figure 3), with blocking sums."""
    return PlainStack(
        c,
        lambda inputs, outputs: ColumnLinear(inputs, outputs, mesh),
        lambda inputs, outputs: RowLinear(inputs, outputs, mesh),
        lambda inputs, outputs: ColumnLinear(inputs, outputs, mesh, "head"),
    )


@torch.no_grad()
def copy_weights(ours: OurStack, other: nn.Module) -> nn.Module:
    """Copy this process's weights of ``ours`` to ``other`` and return it: the same function at ratio 1."""
    theirs = dict(other.named_parameters())
    for name, parameter in ours.named_parameters():
        target = theirs[name.replace(".attention.", ".").replace(".mlp.", ".")]
        local = target.to_local() if isinstance(target, DTensor) else target
        local.copy_(parameter)
    return other
