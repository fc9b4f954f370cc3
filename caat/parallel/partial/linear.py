"""The two GEMMs around a partial synchronisation, as autograd functions on plain tensors.

A process stores its r shards side by side: column-parallel weights [r · c, h], row-parallel weights
[h, r · c], activations between them [..., r · c], as in a model without tensor parallelism. The shared
channels are then one plain GEMM, the private channels a batched GEMM over r views. Sizes below: T tokens, h
hidden channels of which k are shared and m = h - k private, c local channels of one shard.

Each row-parallel layer has one all-reduce in flight in each direction. The GEMMs are split into a shared and
a private part, ordered so that arithmetic which does not depend on the sum runs while it is in flight:

    forward     row-parallel: shared GEMM, start the sum
                    in flight: private GEMM here, private GEMM of the next column-parallel layer
                next column-parallel: wait, shared GEMM
    backward    next column-parallel: shared input gradient, start its sum
                    in flight: private input gradient and weight gradient there, private gradients here
                row-parallel: wait, shared gradients
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.parallel.partial import pointwise
from caat.parallel.partial.direct import add_product, by_shard, norm_product
from caat.parallel.partial.stream import AnyStream, Arriving, Entry, Stream, Transfer, WholeStream


class _RowParallel(torch.autograd.Function):
    """s = a W[:k]^T, to be summed over the processes;  z[k:] = x[k:] + scale · a W[k:]^T  (arXiv 2506.19645).

    The GEMM is split by output channel. Forward computes the shared channels first and starts their sum,
    which is in flight while the private ones are computed. When autograd calls backward, the sum of the
    shared gradient is already in flight, so backward computes everything private before it waits.
    """

    @staticmethod
    def forward(
        ctx,
        a: Tensor,
        weight: Tensor,
        x_private: Tensor,
        scale: float,
        mesh: Mesh,
        transfer: Transfer,
        compiled: bool,
    ):  # type: ignore[override]
        k = len(weight) - x_private.shape[-1]
        shared = mesh.tape.kept()
        if shared is None:
            # The GEMM sums over the local shards in its accumulator, so only the sum over processes is left.
            shared = mesh.tape.keep(a @ weight[:k].T)
            transfer.start(shared)
        of_shard, private_weight = by_shard(a, mesh.local), by_shard(weight[k:], mesh.local)
        square = None
        if compiled:
            # The compiled kernel that sums the squares for the norm adds the residual in the same pass.
            product = torch.empty_like(x_private, memory_format=torch.contiguous_format)
            _scaled_bmm(of_shard, private_weight.mT, scale, product)
            private, square = pointwise.add_residual(x_private, product, compiled=True)
            ctx.mark_non_differentiable(square)
        else:
            private = torch.baddbmm(x_private, of_shard, private_weight.mT, alpha=scale)
        ctx.save_for_backward(a, weight)
        ctx.k, ctx.scale, ctx.mesh, ctx.transfer = k, scale, mesh, transfer
        return shared, private, square

    @staticmethod
    def backward(ctx, shared_grad: Tensor, private_grad: Tensor, _):  # type: ignore[override]
        a, weight = ctx.saved_tensors
        k, scale, shards = ctx.k, ctx.scale, ctx.mesh.local
        a_grad, weight_grad = torch.empty_like(a), torch.empty_like(weight)
        if some_private := k < len(weight):
            _scaled_bmm(private_grad, by_shard(weight[k:], shards), scale, by_shard(a_grad, shards))
            _scaled_bmm(private_grad.mT, by_shard(a, shards), scale, by_shard(weight_grad[k:], shards))

        # The sum started by _NormColumnParallel.backward. Only the two shared GEMMs below need it.
        ctx.transfer.wait()
        a_grad.addmm_(shared_grad, weight[:k], beta=int(some_private))
        torch.mm(shared_grad.T, a, out=weight_grad[:k])
        return a_grad, weight_grad, private_grad, None, None, None, None


def row_parallel(
    a: Tensor, weight: Tensor, x: Stream | WholeStream, scale: float, mesh: Mesh, *, compiled: bool = False
) -> Arriving | WholeStream:
    """Row-parallel product with partial synchronisation of the shared channels, added to the stream ``x``.

    ``a`` [..., r · c], ``weight`` [h, r · c], ``x`` with h channels. Shared channels get the sum over all N
    shards, which may still be in flight on return; private channels get their own shard's product times
    ``scale``. Backward sums the shared gradient over the processes, so the preceding column-parallel layer
    needs no all-reduce. ``compiled``: the pointwise work around the GEMMs is compiled.
    """
    if isinstance(x, WholeStream):
        return add_product(x, a, weight, scale, mesh)
    transfer = Transfer(mesh.tensor)
    arriving, private, square = _RowParallel.apply(
        a.flatten(0, -2), weight, x.private.flatten(1, -2), scale, mesh, transfer, compiled
    )
    return Arriving(x.shared, arriving.view(x.shared.shape), private.view(x.private.shape), transfer, square)


class _NormColumnParallel(torch.autograd.Function):
    """y = (x · gamma) W^T, and rstd, one number per token and shard: rstd · y is the normalised product.

    The GEMM is split by input channel. Forward multiplies the private channels while the sum of the shared
    ones is in flight. Backward computes the shared gradient first and starts its sum, which is in flight
    during the rest of backward.

    Factoring rstd out makes this possible: it needs the shared channels, but it scales the finished product.
    gamma scales the activations, except for private channels with r > 1 shards in a process, where it scales
    W, which is much smaller than r streams (unless there are few tokens, as in generation). The normalised
    input is never materialised. x itself is returned for the residual, so that backward adds both of its
    gradients in one pass.
    """

    @staticmethod
    def forward(
        ctx,
        shared: Tensor,  # [T, k]; the residual alone if ``arriving`` is still to be added
        arriving: Tensor | None,  # [T, k], the sum in flight
        private: Tensor,  # [r, T, m]
        square: Tensor | None,  # sum(private²) [r, T, 1] if already computed
        transfer: Transfer | None,
        entry: Entry | None,
        gamma: Tensor,
        weight: Tensor,
        eps: float,
        compiled: bool,
    ):  # type: ignore[override]
        shards, k = len(private), shared.shape[-1]
        y = shared.new_empty(len(shared), len(weight))
        of_shard = by_shard(y, shards)
        # The private part of y, while the shared sum is in flight.
        if shards == 1 and k < len(gamma):
            torch.mm(private[0] * gamma[k:], weight[:, k:].T, out=y)
        elif k < len(gamma):
            private_weight = weight[:, k:].unflatten(0, (shards, -1))
            if private.shape[1] < private_weight.shape[1]:
                torch.bmm(private * gamma[k:], private_weight.mT, out=of_shard)
            else:
                torch.bmm(private, (private_weight * gamma[k:]).mT, out=of_shard)
        if square is None:
            square = pointwise.square_sum(private)

        # The shared channels: everything below depends on the sum.
        if transfer is not None and arriving is not None:
            transfer.wait()
            shared, scaled, shared_square = pointwise.arrive(shared, arriving, gamma[:k], compiled=compiled)
        else:
            scaled, shared_square = shared * gamma[:k], pointwise.square_sum(shared)
        y.addmm_(scaled, weight[:, :k].T, beta=int(k < len(gamma)))
        rstd = torch.rsqrt((square + shared_square) / gamma.numel() + eps)
        ctx.save_for_backward(shared, private, gamma, weight, rstd)
        ctx.transfer, ctx.entry, ctx.compiled = transfer, entry, compiled
        return shared, private, y, rstd

    @staticmethod
    def backward(ctx, x_shared_grad: Tensor, x_private_grad: Tensor, y_grad: Tensor, rstd_grad: Tensor):  # type: ignore[override]
        shared, private, gamma, weight, rstd = ctx.saved_tensors
        shards, k, compiled = len(private), shared.shape[-1], ctx.compiled
        # d rstd / d x_j = -rstd^3 x_j / h.
        pull = rstd_grad * rstd**3 / gamma.numel()
        of_shard = by_shard(y_grad, shards)

        # Shared gradient first, so that its sum can start. The GEMM adds up the local shards' contributions.
        product = y_grad @ weight[:, :k]
        shared_grad = pointwise.scaled_input_grad(
            x_shared_grad, product, gamma[:k], shared, pull.sum(0), compiled=compiled
        )
        arriving_grad = None if ctx.transfer is None else ctx.transfer.start_backward(shared_grad)

        # Everything from here on, and the private part of _RowParallel.backward, hides that sum.
        if shards == 1:
            product = (y_grad @ weight[:, k:]).unsqueeze(0)
            private_grad = pointwise.scaled_input_grad(
                x_private_grad, product, gamma[k:], private, pull, compiled=compiled
            )
        else:
            private_weight = (weight[:, k:] * gamma[k:]).unflatten(0, (shards, -1))
            if compiled:
                product = torch.bmm(of_shard, private_weight)
                private_grad = pointwise.input_grad(x_private_grad, product, private, pull, compiled=True)
            else:
                private_grad = torch.baddbmm(x_private_grad, of_shard, private_weight)
                private_grad.addcmul_(private, pull.to(private.dtype), value=-1)
        if ctx.entry is not None:
            # The first layer: the sum of the embedding's gradient is hidden by the weight gradient below.
            ctx.entry.start(shared_grad, private_grad)

        weight_grad = torch.empty_like(weight)
        if shards == 1:
            # One GEMM is faster than two narrower ones, even including the concatenation of its input.
            x = torch.cat([shared, private[0]], -1) if k < len(gamma) else shared
            torch.mm(y_grad.T, x, out=weight_grad)
        else:
            torch.mm(y_grad.T, shared, out=weight_grad[:, :k])
            _bmm_of_strided(of_shard.mT, private, weight_grad[:, k:].unflatten(0, (shards, -1)))
        gamma_grad, weight_grad = pointwise.weight_grads(weight_grad, weight, gamma, compiled=compiled)
        return shared_grad, arriving_grad, private_grad, None, None, None, gamma_grad, weight_grad, None, None


class _Scale(torch.autograd.Function):
    """rstd · y, in place, for the case that no compiled kernel after the product applies rstd."""

    @staticmethod
    def forward(ctx, y: Tensor, rstd: Tensor) -> Tensor:  # type: ignore[override]
        by_shard(y, len(rstd)).mul_(rstd)
        ctx.save_for_backward(y, rstd)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        y, rstd = ctx.saved_tensors
        both = grad * y
        rstd_grad = by_shard(both, len(rstd)).sum(-1, keepdim=True, dtype=rstd.dtype) / rstd
        # Reuse the memory of ``both``: allocating a tensor of this size costs as much as the product.
        torch.mul(by_shard(grad, len(rstd)), rstd, out=by_shard(both, len(rstd)))
        return both, rstd_grad


def norm_column_parallel(
    x: AnyStream, gamma: Tensor, weight: Tensor, eps: float, compiled: bool = False
) -> tuple[Stream | WholeStream, Tensor, Tensor | None]:
    """RMSNorm of the stream on each shard, then the column-parallel product.

    ``gamma`` [h], ``weight`` [r · c, h]. Returns the stream ``x`` for the residual, the product
    [..., r · c], and None or, if ``compiled``, the factor [..., r] by which the next kernel must multiply the
    product. Each shard normalises the shared channels together with its own private ones.
    """
    if isinstance(x, WholeStream):
        return x, norm_product(x, gamma, weight, eps), None
    private = x.private.flatten(1, -2)
    if nothing_private := private.shape[-1] == 0:
        # All shards have the same stream: normalise it once.
        private = private[:1]
        if not x.travels:
            if compiled and isinstance(x, Arriving):
                shared, normed = pointwise.add_norm(x.residual, x.sum, gamma, eps, compiled=True)
                return Stream(shared, x.private), F.linear(normed, weight), None
            x = x.settled()
            return x, F.linear(F.rms_norm(x.shared, gamma.shape, gamma, eps), weight), None
    inputs: tuple
    if isinstance(x, Arriving):
        square = None if nothing_private else x.private_square
        inputs = x.residual.flatten(0, -2), x.sum.flatten(0, -2), private, square, x.transfer, None
    else:
        inputs = x.shared.flatten(0, -2), None, private, None, None, x.entry
    shared, private, y, rstd = _NormColumnParallel.apply(*inputs, gamma, weight, eps, compiled)
    tokens = x.private.shape[1:-1]
    stream = Stream(
        shared.unflatten(0, tokens), x.private if nothing_private else private.unflatten(1, tokens)
    )
    if not compiled:
        return stream, _Scale.apply(y, rstd).unflatten(0, tokens), None
    return stream, y.unflatten(0, tokens), rstd.squeeze(-1).T.unflatten(0, tokens)


def column_parallel(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each shard's input [r, ..., in] by its rows of ``weight`` [r · c, in] -> [..., r · c]."""
    if len(x) == 1:
        return F.linear(x.squeeze(0), weight)
    y = torch.bmm(x.flatten(1, -2), weight.unflatten(0, (len(x), -1)).mT)
    return y.movedim(0, 1).reshape(*x.shape[1:-1], len(weight))


def _scaled_bmm(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _bmm_of_strided(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right, where ``left`` is transposed and lies between other shards' values."""
    if not out.is_cpu:
        torch.bmm(left, right, out=out)
        return
    # In bfloat16 on a CPU, bmm first copies such an operand: 0.8 to 6 times the time of the product.
    for of_shard in zip(left, right, out, strict=True):
        torch.mm(*of_shard[:2], out=of_shard[2])
