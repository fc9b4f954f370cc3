"""The two differentiable sums of tensor parallelism: Megatron's f and g (arXiv 1909.08053)."""

from __future__ import annotations

import torch
from torch import Tensor

from caat.parallel.collectives import Collectives


def sum_forward(x: Tensor, collectives: Collectives, purpose: str) -> Tensor:
    """Sum ``x`` over the processes, in place; in backward, the gradient passes unchanged (Megatron's *g*)."""
    return x if collectives.processes == 1 else _SumForward.apply(x, collectives, purpose)


def sum_gradient(x: Tensor, collectives: Collectives, purpose: str, *, wide: bool = True) -> Tensor:
    """Return ``x``; in backward, the gradient is summed over the processes (Megatron's *f*).

    ``wide`` sums a copy in float32 at least, for small messages that weights depend on; otherwise the
    gradient is summed in place in its own type.
    """
    return x if collectives.processes == 1 else _SumGradient.apply(x, collectives, purpose, wide)


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, collectives: Collectives, purpose: str) -> Tensor:  # type: ignore[override]
        ctx.mark_dirty(x)
        return collectives.all_reduce(x, "forward", purpose)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return gradient, None, None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, collectives: Collectives, purpose: str, wide: bool) -> Tensor:  # type: ignore[override]
        ctx.collectives, ctx.purpose, ctx.wide = collectives, purpose, wide
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        message = gradient
        if ctx.wide:
            dtype = torch.promote_types(gradient.dtype, torch.float32)
            message = gradient.to(dtype, copy=True, memory_format=torch.contiguous_format)
        total = ctx.collectives.all_reduce(message, "backward", ctx.purpose)
        return total.to(gradient.dtype), None, None, None
