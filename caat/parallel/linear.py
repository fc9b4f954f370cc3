"""The two GEMMs round a partial synchronisation, as autograd functions on plain tensors.

Weights carry the leading shard axis r: column-parallel [r, out, in], row-parallel [r, out, in].
Sizes below: T tokens (all axes between the shard axis and the channels), h hidden channels of which k
are shared and m = h - k private, c local channels of one shard.
"""

from __future__ import annotations

import torch
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
        private = torch.bmm(a, weight[:, k:].mT).mul_(scale)
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
        shared_grad = shared_grad.expand(shards, *shared_grad.shape)
        private_grad = private_grad * ctx.scale
        a_grad = torch.bmm(shared_grad, weight[:, :k])
        a_grad.baddbmm_(private_grad, weight[:, k:])
        weight_grad = torch.empty_like(weight)
        torch.bmm(shared_grad.mT, a, out=weight_grad[:, :k])
        torch.bmm(private_grad.mT, a, out=weight_grad[:, k:])
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

    The normalised input is never stored: it is made again in backward from the stream, which is kept
    anyway. With r shards in one process that is r times the saving.
    """

    @staticmethod
    def forward(ctx, shared: Tensor, private: Tensor, gamma: Tensor, weight: Tensor, eps: float):  # type: ignore[override]
        shards, k = weight.shape[0], shared.shape[-1]
        wide = torch.promote_types(shared.dtype, torch.float32)
        square = _square_sum(shared, wide) + _square_sum(private, wide)
        rstd = torch.rsqrt(square / gamma.numel() + eps)
        scaled = (shared * gamma[:k]).expand(shards, *shared.shape)
        y = torch.bmm(scaled, weight[..., :k].mT)
        if private.shape[-1]:
            y.baddbmm_(private * gamma[k:], weight[..., k:].mT)
        y.mul_(rstd)
        ctx.save_for_backward(shared, private, gamma, weight, rstd, y)
        return y

    @staticmethod
    def backward(ctx, y_grad: Tensor):  # type: ignore[override]
        shared, private, gamma, weight, rstd, y = ctx.saved_tensors
        k, h = shared.shape[-1], gamma.numel()
        # d rstd / d x_j = -rstd^3 x_j / h, and y_grad · y / rstd is the gradient of rstd.
        pull = (y_grad * y).sum(-1, keepdim=True, dtype=rstd.dtype) * rstd.square() / h
        y_grad = (y_grad * rstd).to(y.dtype)
        weight_grad = torch.empty_like(weight)

        normed = torch.bmm(y_grad, weight[..., :k]).sum(0)
        shared_grad = (normed * gamma[:k]).sub_((shared * pull.sum(0)).to(shared.dtype))
        gamma_grad = [(normed * shared).sum(0)]
        scaled = (shared * gamma[:k]).expand(y.shape[0], *shared.shape)
        torch.bmm(y_grad.mT, scaled, out=weight_grad[..., :k])

        normed = torch.bmm(y_grad, weight[..., k:])
        private_grad = (normed * gamma[k:]).sub_((private * pull).to(private.dtype))
        gamma_grad.append((normed * private).sum((0, 1)))
        torch.bmm(y_grad.mT, private * gamma[k:], out=weight_grad[..., k:])
        return shared_grad, private_grad, torch.cat(gamma_grad), weight_grad, None


def _square_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()


def norm_column_parallel(x: Stream, gamma: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of the stream on each shard, then the column-parallel product.

    ``gamma`` [h], ``weight`` [r, c, h]. Returns [r, ..., c]. Each shard normalises what it sees itself:
    the shared channels together with its own private ones.
    """
    y = _NormColumnParallel.apply(x.shared.flatten(0, -2), x.private.flatten(1, -2), gamma, weight, eps)
    return y.view(len(weight), *x.shared.shape[:-1], -1)
