"""Grouped-query causal self-attention, heads cut over the shards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caat.parallel.mesh import Mesh
from caat.parallel.stream import Stream
from conf.schema import ModelConfig
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.norm import Normed
from layers.rotary import rotate


class Attention(nn.Module):
    """Normed stream -> stream; query, key and value are one column-parallel GEMM, the output row-parallel."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, ratio: float, private_scale: float | None, recompute: bool
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = config.heads // mesh.shards
        self.kv_heads = config.kv_heads // mesh.shards
        self.recompute = recompute
        sizes = (config.hidden, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim)
        self.qkv = ColumnParallelLinear(config.hidden, sizes, mesh)
        self.output = RowParallelLinear(config.hidden, config.hidden, mesh, ratio, private_scale)

    def forward(self, x: Normed, cos: Tensor, sin: Tensor) -> Stream:
        qkv = self.qkv(x)
        if self.recompute:
            return self.output(checkpoint(self.core, qkv, cos, sin, use_reentrant=False))
        return self.output(self.core(qkv, cos, sin))

    def core(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[r, batch, seq, q + k + v] -> [r, batch, seq, q]: everything between the two GEMMs, all local."""
        shards, batch, length, _ = qkv.shape
        # Shards and batch are one axis here: heads of different shards never meet.
        heads = qkv.view(shards * batch, length, -1, self.head_dim)
        turned = rotate(heads[:, :, : self.heads + self.kv_heads], cos, sin)
        q, k = turned.transpose(1, 2).split([self.heads, self.kv_heads], dim=1)
        v = heads[:, :, self.heads + self.kv_heads :].transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return out.transpose(1, 2).reshape(shards, batch, length, -1)
