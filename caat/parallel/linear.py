"""The two GEMMs round a partial synchronisation, as autograd functions on plain tensors.

A process keeps its r shards side by side: column-parallel weights [r · c, h], row-parallel weights
[h, r · c], activations between them [..., r · c], as in a model that is not cut at all. What all shards
share is then one plain GEMM; what is private is a batch of r, over views. Sizes below: T tokens, h hidden
channels of which k are shared and m = h - k private, c local channels of one shard.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.parallel.stream import Stream


class _RowParallel(torch.autograd.Function):
    """z[:k] = sum over shards of a W[:k]^T,  z[k:] = scale · a W[k:]^T  (CAAT-Net, arXiv 2506.19645)."""

    @staticmethod
    def forward(
        ctx, a: Tensor, weight: Tensor, x_shared: Tensor, x_private: Tensor, scale: float, mesh: Mesh
    ):  # type: ignore[override]
        k = x_shared.shape[-1]
        shared = mesh.tensor.kept()
        if shared is None:
            # The GEMM sums over the local shards, in its accumulator.
            shared = a @ weight[:k].T
            mesh.tensor.keep(mesh.tensor.all_reduce(shared, "forward", "sync"))
        private_weight = _by_shard(weight[k:] * scale, mesh.local)
        private = torch.baddbmm(x_private, _by_shard(a, mesh.local), private_weight.mT)
        ctx.save_for_backward(a, weight)
        ctx.k, ctx.scale, ctx.mesh = k, scale, mesh
        return x_shared + shared, private

    @staticmethod
    def backward(ctx, shared_grad: Tensor, private_grad: Tensor):  # type: ignore[override]
        a, weight = ctx.saved_tensors
        k, scale, mesh = ctx.k, ctx.scale, ctx.mesh
        # Every shard used its own copy of the shared channels: the sum of their gradients is the gradient.
        total_grad = mesh.tensor.all_reduce(
            shared_grad.clone(memory_format=torch.contiguous_format), "backward", "sync"
        )
        a_grad = total_grad @ weight[:k]
        _by_shard(a_grad, mesh.local).baddbmm_(private_grad, _by_shard(weight[k:] * scale, mesh.local))
        weight_grad = torch.empty_like(weight)
        torch.mm(total_grad.T, a, out=weight_grad[:k])
        private_weight_grad = torch.bmm(private_grad.mT, _by_shard(a, mesh.local))
        torch.mul(private_weight_grad, scale, out=_by_shard(weight_grad[k:], mesh.local))
        return a_grad, weight_grad, shared_grad, private_grad, None, None


def row_parallel(a: Tensor, weight: Tensor, x: Stream, scale: float, mesh: Mesh) -> Stream:
    """Row-parallel product, partial synchronisation of the shared channels, added to the stream ``x``.

    ``a`` [..., r · c], ``weight`` [h, r · c], ``x`` of h channels. Shared channels get the sum over all N
    shards, private ones their own shard's product times ``scale``. Backward sums the shared gradient over
    the processes; the column-parallel layer before needs no all-reduce of its own.
    """
    shared, private = _RowParallel.apply(
        a.flatten(0, -2), weight, x.shared.flatten(0, -2), x.private.flatten(1, -2), scale, mesh
    )
    return Stream(shared.view(x.shared.shape), private.view(x.private.shape))


class _NormColumnParallel(torch.autograd.Function):
    """y = rstd · ((x · gamma) W^T): rstd is one number per token and shard, so it can follow the GEMM.

    gamma scales the shared channels themselves, but for the private ones it scales W: with r shards in one
    process those are r streams and W is the smaller by far. The normalised input is never made nor stored.
    x itself is passed on to the residual, so that backward adds both its gradients within a GEMM.
    """

    @staticmethod
    def forward(ctx, shared: Tensor, private: Tensor, gamma: Tensor, weight: Tensor, eps: float):  # type: ignore[override]
        shards, k = len(private), shared.shape[-1]
        wide = torch.promote_types(shared.dtype, torch.float32)
        square = _square_sum(shared, wide) + _square_sum(private, wide)
        rstd = torch.rsqrt(square / gamma.numel() + eps)
        y = (shared * gamma[:k]) @ weight[:, :k].T
        of_shard = _by_shard(y, shards)
        of_shard.baddbmm_(private, (weight[:, k:] * gamma[k:]).unflatten(0, (shards, -1)).mT)
        of_shard.mul_(rstd)
        ctx.save_for_backward(shared, private, gamma, weight, rstd, y)
        return shared, private, y

    @staticmethod
    def backward(ctx, x_shared_grad: Tensor, x_private_grad: Tensor, y_grad: Tensor):  # type: ignore[override]
        shared, private, gamma, weight, rstd, y = ctx.saved_tensors
        shards, k = len(private), shared.shape[-1]
        # d rstd / d x_j = -rstd^3 x_j / h, and y_grad · y / rstd is the gradient of rstd.
        y_grad_scaled = y_grad * y
        pull = _by_shard(y_grad_scaled, shards).sum(-1, keepdim=True, dtype=rstd.dtype)
        pull = pull * rstd.square() / gamma.numel()
        # The same memory again: a fresh tensor of this size costs as much as the product.
        of_shard = torch.mul(_by_shard(y_grad, shards), rstd, out=_by_shard(y_grad_scaled, shards))
        weight_grad, gamma_grad = torch.empty_like(weight), torch.empty_like(gamma)

        # The GEMM sums over the local shards: the shared channels have one gradient.
        normed_grad = y_grad_scaled @ weight[:, :k]
        torch.sum(normed_grad * shared, 0, out=gamma_grad[:k])
        shared_grad = normed_grad.mul_(gamma[:k]).addcmul_(shared, pull.sum(0).to(shared.dtype), value=-1)
        shared_grad.add_(x_shared_grad)
        torch.mm(y_grad_scaled.T, shared * gamma[:k], out=weight_grad[:, :k])

        private_weight = weight[:, k:].unflatten(0, (shards, -1))
        private_grad = torch.baddbmm(x_private_grad, of_shard, private_weight * gamma[k:])
        private_grad.addcmul_(private, pull.to(private.dtype), value=-1)
        scaled_weight_grad = torch.bmm(of_shard.mT, private)
        torch.sum(scaled_weight_grad * private_weight, (0, 1), out=gamma_grad[k:])
        torch.mul(scaled_weight_grad.flatten(0, 1), gamma[k:], out=weight_grad[:, k:])
        return shared_grad, private_grad, gamma_grad, weight_grad, None


def norm_column_parallel(x: Stream, gamma: Tensor, weight: Tensor, eps: float) -> tuple[Stream, Tensor]:
    """RMSNorm of the stream on each shard, then the column-parallel product.

    ``gamma`` [h], ``weight`` [r · c, h]. Returns ``x`` for the residual to go on with, and the product
    [..., r · c]. Each shard normalises what it sees itself: the shared channels with its own private ones.
    """
    if x.private.shape[-1] == 0:
        # Nothing is private, so every shard sees the same: normalise once, plainly.
        return x, F.linear(F.rms_norm(x.shared, gamma.shape, gamma, eps), weight)
    shared, private, y = _NormColumnParallel.apply(
        x.shared.flatten(0, -2), x.private.flatten(1, -2), gamma, weight, eps
    )
    stream = Stream(shared.view(x.shared.shape), private.view(x.private.shape))
    return stream, y.view(*x.shared.shape[:-1], len(weight))


def column_parallel(x: Tensor, weight: Tensor) -> Tensor:
    """Each shard's own input [r, ..., in] by its rows of ``weight`` [r · c, in] -> [..., r · c]."""
    if len(x) == 1:
        return F.linear(x.squeeze(0), weight)
    y = torch.bmm(x.flatten(1, -2), weight.unflatten(0, (len(x), -1)).mT)
    return y.movedim(0, 1).reshape(*x.shape[1:-1], len(weight))


def _by_shard(x: Tensor, shards: int) -> Tensor:
    """[rows, r · c] as a view [r, rows, c]."""
    return x.unflatten(-1, (shards, -1)).movedim(1, 0)


def _square_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()
