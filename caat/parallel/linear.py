"""The two GEMMs round a partial synchronisation, as autograd functions on plain tensors.

Weights carry the leading shard axis r: column-parallel [r, out, in], row-parallel [r, out, in].
Sizes below: T tokens (all axes between the shard axis and the channels), h hidden channels of which k
are shared and m = h - k private, c local channels of one shard.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.parallel.stream import Stream


class _RowParallel(torch.autograd.Function):
    """z[:k] = sum over shards of a W[:k]^T,  z[k:] = scale · a W[k:]^T  (design: CAAT-Net, section 3)."""

    @staticmethod
    def forward(ctx, a: Tensor, weight: Tensor, k: int, scale: float, mesh: Mesh):  # type: ignore[override]
        shards, channels = a.shape[0], a.shape[-1]
        shared = mesh.tensor.kept()
        if shared is None:
            # One GEMM over (shard, channel) sums the local shards in the accumulator, without rounding each.
            row = weight[:, :k].movedim(0, 1).reshape(k, shards * channels)
            shared = a.movedim(0, 1).reshape(-1, shards * channels) @ row.T
            mesh.tensor.keep(mesh.tensor.all_reduce(shared, "forward", "sync"))
        private = _scaled_bmm(a, weight[:, k:].mT, scale)
        ctx.save_for_backward(a, weight)
        ctx.k, ctx.scale, ctx.mesh = k, scale, mesh
        return shared, private

    @staticmethod
    def backward(ctx, shared_grad: Tensor, private_grad: Tensor):  # type: ignore[override]
        a, weight = ctx.saved_tensors
        k, shards = ctx.k, a.shape[0]
        # Every shard used its own copy of the shared channels: the sum of their gradients is the gradient.
        shared_grad = ctx.mesh.tensor.all_reduce(
            shared_grad.clone(memory_format=torch.contiguous_format), "backward", "sync"
        )
        shared_grad = _on_every_shard(shared_grad, shards)
        a_grad = torch.bmm(shared_grad, weight[:, :k])
        a_grad.baddbmm_(private_grad, weight[:, k:], alpha=ctx.scale)
        weight_grad = torch.empty_like(weight)
        torch.bmm(shared_grad.mT, a, out=weight_grad[:, :k])
        _scaled_bmm(private_grad.mT, a, ctx.scale, out=weight_grad[:, k:])
        return a_grad, weight_grad, None, None, None


def row_parallel(a: Tensor, weight: Tensor, k: int, scale: float, mesh: Mesh) -> Stream:
    """Row-parallel product, then partial synchronisation of the first ``k`` output channels.

    ``a`` [r, ..., c], ``weight`` [r, h, c]. Returns the stream of h channels: shared channels summed over
    all N shards, private ones multiplied by ``scale``. Backward sums the shared gradient over the
    processes; the column-parallel layer before needs no all-reduce of its own.
    """
    shards, *middle, _ = a.shape
    shared, private = _RowParallel.apply(a.flatten(1, -2), weight, k, scale, mesh)
    return Stream(shared.view(*middle, k), private.view(shards, *middle, weight.shape[1] - k))


class _NormColumnParallel(torch.autograd.Function):
    """y = rstd · ((x · gamma) W^T): rstd is one number per token, so it can follow the GEMM.

    gamma scales the shared channels themselves, but for the private ones it scales W: with r shards in one
    process those are r streams and W is the smaller by far. The normalised input is never made nor stored.
    """

    @staticmethod
    def forward(ctx, shared: Tensor, private: Tensor, gamma: Tensor, weight: Tensor, eps: float):  # type: ignore[override]
        shards, k = weight.shape[0], shared.shape[-1]
        wide = torch.promote_types(shared.dtype, torch.float32)
        square = _square_sum(shared, wide) + _square_sum(private, wide)
        rstd = torch.rsqrt(square / gamma.numel() + eps)
        y = torch.bmm(_on_every_shard(shared * gamma[:k], shards), weight[..., :k].mT)
        y.baddbmm_(private, (weight[..., k:] * gamma[k:]).mT)
        y.mul_(rstd)
        ctx.save_for_backward(shared, private, gamma, weight, rstd, y)
        return y

    @staticmethod
    def backward(ctx, y_grad: Tensor):  # type: ignore[override]
        shared, private, gamma, weight, rstd, y = ctx.saved_tensors
        shards, k = weight.shape[0], shared.shape[-1]
        # d rstd / d x_j = -rstd^3 x_j / h, and y_grad · y / rstd is the gradient of rstd.
        pull = (y_grad * y).sum(-1, keepdim=True, dtype=rstd.dtype) * rstd.square() / gamma.numel()
        y_grad = (y_grad * rstd).to(y.dtype)
        weight_grad, gamma_grad = torch.empty_like(weight), torch.empty_like(gamma)

        # The shared channels have one gradient: the sum over the local shards that read them.
        normed_grad = torch.bmm(y_grad, weight[..., :k]).sum(0)
        torch.sum(normed_grad * shared, 0, out=gamma_grad[:k])
        shared_grad = normed_grad.mul_(gamma[:k]).addcmul_(shared, pull.sum(0).to(shared.dtype), value=-1)
        torch.bmm(y_grad.mT, _on_every_shard(shared * gamma[:k], shards), out=weight_grad[..., :k])

        scaled_weight = weight[..., k:] * gamma[k:]
        private_grad = torch.bmm(y_grad, scaled_weight).addcmul_(private, pull.to(private.dtype), value=-1)
        scaled_weight_grad = torch.bmm(y_grad.mT, private)
        torch.sum(scaled_weight_grad * weight[..., k:], (0, 1), out=gamma_grad[k:])
        torch.mul(scaled_weight_grad, gamma[k:], out=weight_grad[..., k:])
        return shared_grad, private_grad, gamma_grad, weight_grad, None


def _on_every_shard(x: Tensor, shards: int) -> Tensor:
    return x.expand(shards, *x.shape)


def _scaled_bmm(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale · (a @ b) in one pass."""
    if out is None:
        out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    # beta = 0: what is in `out` is ignored, nan included.
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _square_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()


def norm_column_parallel(x: Stream, gamma: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of the stream on each shard, then the column-parallel product.

    ``gamma`` [h], ``weight`` [r, c, h]. Returns [r, ..., c]. Each shard normalises what it sees itself:
    the shared channels together with its own private ones.
    """
    if x.private.shape[-1] == 0:
        # Nothing is private, so every shard sees the same: normalise once, plainly.
        return column_parallel(F.rms_norm(x.shared, gamma.shape, gamma, eps).unsqueeze(0), weight)
    y = _NormColumnParallel.apply(x.shared.flatten(0, -2), x.private.flatten(1, -2), gamma, weight, eps)
    return y.view(len(weight), *x.shared.shape[:-1], -1)


def column_parallel(x: Tensor, weight: Tensor) -> Tensor:
    """[r, ..., in] (or [1, ..., in], the same for all shards) by ``weight`` [r, out, in] -> [r, ..., out]."""
    if len(weight) == 1:
        return F.linear(x.squeeze(0), weight.squeeze(0)).unsqueeze(0)
    flat = x.flatten(1, -2)
    return torch.bmm(flat.expand(len(weight), *flat.shape[1:]), weight.mT).view(
        -1, *x.shape[1:-1], weight.shape[1]
    )
