"""Grouped-query causal self-attention, heads cut over the shards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caat.parallel.mesh import Mesh
from caat.parallel.stream import Arriving
from conf.model import ModelConfig
from layers.cache import LayerCache
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.norm import Normed
from layers.rotary import rotate


class Attention(nn.Module):
    """x + attention(norm(x)); query, key and value are one column-parallel GEMM, the output row-parallel."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, ratio: float, private_scale: float, recompute: bool
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = config.heads // mesh.shards
        self.kv_heads = config.kv_heads // mesh.shards
        self.recompute = recompute
        sizes = (config.hidden, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim)
        self.qkv = ColumnParallelLinear(config.hidden, sizes, mesh)
        self.output = RowParallelLinear(config.hidden, config.hidden, mesh, ratio, private_scale)

    def forward(self, normed: Normed, cos: Tensor, sin: Tensor, cache: LayerCache | None = None) -> Arriving:
        x, qkv = self.qkv.after_norm(normed)
        if self.recompute:
            return self.output.before_norm(
                checkpoint(self.core, qkv, cos, sin, cache, use_reentrant=False), x
            )
        return self.output.before_norm(self.core(qkv, cos, sin, cache), x)

    def core(self, qkv: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None) -> Tensor:
        """[batch, seq, r · (q + k + v)] -> [batch, seq, r · q]: all between the two GEMMs, all local.

        Heads of different shards never meet: those of the r shards are simply more heads.
        """
        parts = [self.heads, self.kv_heads, self.kv_heads]
        heads = qkv.unflatten(-1, (-1, sum(parts), self.head_dim))
        q, k, v = (part.flatten(2, 3) for part in heads.split(parts, dim=-2))
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        return attend(q, k, v, cache).transpose(1, 2).flatten(2, 3)


def attend(q: Tensor, k: Tensor, v: Tensor, cache: LayerCache | None) -> Tensor:
    """Causal attention [batch, heads, seq, head_dim], over what is in the cache as well."""
    mask, causal = None, True
    if cache is not None:
        k, v = cache.append(k, v)
        mask, causal = cache.mask, cache.length == 0 and cache.mask is None
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )
