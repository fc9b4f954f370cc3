"""The two products around a partial synchronisation, for passes of few tokens without gradients.

When a model generates one token, most operations take longer to launch than to run, and a message is all
latency. So there are few operations: the stream is one tensor, and nothing is kept for a backward pass.
Only the private half of the row-parallel GEMM hides the sum. Sizes as in linear.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import WholeStream


def add_product(x: WholeStream, a: Tensor, weight: Tensor, scale: float, mesh: Mesh) -> WholeStream:
    """Return ``x`` plus the row-parallel product of ``a`` [..., r · c] and ``weight`` [h, r · c].

    Shared channels get the sum over all N shards, private ones their own shard's product times ``scale``.
    """
    a, k = a.reshape(-1, a.shape[-1]), x.shared_channels
    shared = F.linear(a, weight[:k])
    wait = mesh.tensor.start_sum(shared, "forward", "sync")
    whole = x.whole.clone()
    if k < len(weight):
        _add_private(whole[..., k:], a, weight[k:], scale)
    wait()
    whole[..., :k].add_(shared)
    return x._replace(whole=whole)


def _add_private(private: Tensor, a: Tensor, weight: Tensor, scale: float) -> None:
    """Add scale · a W^T of each shard to its private channels."""
    if private.ndim == 2:
        private.addmm_(a, weight.t(), alpha=scale)
    else:
        shards = len(private)
        private.baddbmm_(by_shard(a, shards), by_shard(weight, shards).mT, alpha=scale)


def norm_product(x: WholeStream, gamma: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the column-parallel product [..., r · c] of each shard's RMSNorm and ``weight`` [r · c, h]."""
    normed = F.rms_norm(x.whole, gamma.shape, gamma, eps)
    y = F.linear(normed, weight) if normed.ndim == 2 else column_parallel(normed, weight)
    return y.view(*x.tokens, len(weight))


def column_parallel(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each shard's input [r, ..., in] by its rows of ``weight`` [r · c, in] -> [..., r · c]."""
    if len(x) == 1:
        return F.linear(x.squeeze(0), weight)
    y = torch.bmm(x.flatten(1, -2), weight.unflatten(0, (len(x), -1)).mT)
    return y.movedim(0, 1).reshape(*x.shape[1:-1], len(weight))


def by_shard(x: Tensor, shards: int) -> Tensor:
    """View [rows, r · c] as [r, rows, c]."""
    return x.unflatten(-1, (shards, -1)).movedim(1, 0)
