"""Grouped-query causal self-attention with heads split over the shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import AnyStream
from caat.planning.activations import attends_in_float32
from conf.model import ModelConfig
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.norm import Normed, RMSNorm, scaled
from layers.rotary import Angles, rotate


class Context(Protocol):
    """What the tokens of a layer attend to: a cache and themselves, or their documents."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return causal attention; all are [batch, heads, seq, head_dim]. ``q`` may have more heads."""


class Attention(nn.Module):
    """x + attention(norm(x)); query, key and value are one column-parallel GEMM, the output row-parallel."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, ratio: float, private_scale: float, recompute: bool
    ) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.heads = config.heads // mesh.shards
        self.kv_heads = config.kv_heads // mesh.shards
        self.recompute = recompute
        sizes = (config.query_size, config.key_value_size, config.key_value_size)
        self.qkv = ColumnParallelLinear(config.hidden, sizes, mesh, bias=config.attention_bias)
        self.output = RowParallelLinear(config.query_size, config.hidden, mesh, ratio, private_scale)
        self.norm_eps = config.norm_eps
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_size, mesh, config.norm_eps)
            self.k_norm = RMSNorm(config.head_size, mesh, config.norm_eps)

    def forward(
        self,
        normed: Normed,
        angles: Angles,
        context: Context | None = None,
        gammas: Sequence[Tensor] = (),
    ) -> AnyStream:
        """``gammas`` are the weights of the norms of queries and keys, if there are any."""
        x, qkv, rstd = self.qkv.unscaled_after_norm(normed)
        core = partial(self.core, bias=self.qkv.bias, gammas=gammas)
        if self.recompute:
            core = partial(checkpoint, core, use_reentrant=False)
        return self.output.before_norm(core(qkv, *angles, context, rstd), x)

    def core(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        context: Context | None = None,
        rstd: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        gammas: Sequence[Tensor] = (),
    ) -> Tensor:
        """[batch, seq, r · (q + k + v)] -> [batch, seq, r · q]: all work between the two GEMMs, all local.

        ``rstd`` [batch, seq, r] is a factor that ``qkv`` is still to be multiplied by, and ``bias``
        [r · (q + k + v)] is to be added then. ``gammas`` [head size] are the weights of the norms of queries
        and keys. Heads are independent, so those of the r shards are computed like the heads of one larger
        layer.
        """
        parts = [self.heads, self.kv_heads, self.kv_heads]
        heads = qkv.unflatten(-1, (-1, sum(parts), self.head_size))
        biases: Sequence[Tensor | None] = [None] * 3
        if bias is not None:
            biases = bias.unflatten(0, heads.shape[2:]).split(parts, dim=-2)
        q, k, v = (
            scaled(part, rstd, each).flatten(2, 3)
            for part, each in zip(heads.split(parts, dim=-2), biases, strict=True)
        )
        if gammas:
            q, k = (
                F.rms_norm(part, gamma.shape, gamma, self.norm_eps)
                for part, gamma in zip((q, k), gammas, strict=True)
            )
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        return attend(q, k, v, context).transpose(1, 2).flatten(2, 3)


def attend(q: Tensor, k: Tensor, v: Tensor, context: Context | None) -> Tensor:
    """Return causal attention [batch, heads, seq, head_dim] over the ``context``, or over the sequence."""
    if context is not None:
        return context.attend(q, k, v)
    dtype = q.dtype
    if attends_in_float32(q.shape[-1], q.element_size(), cuda=q.is_cuda):
        q, k, v = q.float(), k.float(), v.float()
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).to(dtype)
