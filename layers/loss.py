"""Vocabulary-parallel cross-entropy, without gathering the logits or copying them to float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from caat.data.marks import IGNORED
from caat.parallel.mesh import Mesh
from caat.parallel.partial.pointwise import compiling, fusable
from caat.planning.activations import LOSS_CHUNK
from layers.norm import scaled


class _CrossEntropy(torch.autograd.Function):
    """``logits`` [T, local vocabulary] -> losses [T]. Only the first ``real`` columns are vocabulary entries.

    Forward saves the logits unchanged and one float32 number per token. Backward computes the gradient from
    these, in the type of the logits. ``rstd`` [T, r]: factors by which the logits of each of r shards are
    still to be multiplied. That happens within the compiled kernels.
    """

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        rstd: Tensor | None,
        targets: Tensor,
        real: int,
        mesh: Mesh,
        compiled: bool,
    ) -> Tensor:  # type: ignore[override]
        size = logits.shape[-1]
        index = targets - mesh.tensor_rank * size
        here = (index >= 0) & (index < size)
        column = index.masked_fill(~here, 0).unsqueeze(-1)
        picked = logits.gather(-1, column)
        if rstd is None:
            rows = _row_slices(logits, compiled)
            local_total = torch.cat([log_sum_exp(logits[some, :real], compiled=compiled) for some in rows])
        else:
            local_total = unscaled_log_sum_exp(logits, rstd, real, compiled=compiled)
            picked = scaled(picked, rstd.gather(-1, column // (size // rstd.shape[-1])))
        picked = picked.squeeze(-1).to(local_total.dtype).masked_fill_(~here, 0.0)
        log_total = local_total
        if mesh.processes > 1:
            largest = mesh.tensor.all_reduce(local_total.clone(), "forward", "loss", dist.ReduceOp.MAX)
            # Both sums travel in one message.
            both = torch.stack([(local_total - largest).exp_(), picked])
            total, picked = mesh.tensor.all_reduce(both, "forward", "loss")
            log_total = total.log() + largest
        ignored = targets == IGNORED
        ctx.save_for_backward(logits, rstd, log_total, index, ignored)
        ctx.real, ctx.compiled = real, compiled
        return (log_total - picked).masked_fill_(ignored, 0.0)

    @staticmethod
    def backward(ctx, loss_grad: Tensor):  # type: ignore[override]
        logits, rstd, log_total, index, ignored = ctx.saved_tensors
        columns = [x.unsqueeze(-1) for x in (log_total, index, loss_grad.masked_fill(ignored, 0.0))]
        if rstd is not None:
            return *unscaled_logit_grad(logits, rstd, ctx.real, columns, compiled=ctx.compiled), *[None] * 4
        gradient = torch.empty_like(logits)
        gradient[:, ctx.real :] = 0.0
        for some in _row_slices(logits, ctx.compiled):
            part = [x[some] for x in columns]
            logit_grad(gradient[some, : ctx.real], logits[some, : ctx.real], *part, compiled=ctx.compiled)
        return gradient, None, None, None, None, None


@fusable
def log_sum_exp(logits: Tensor) -> Tensor:
    """[rows, vocabulary] -> [rows], in float32 at least."""
    return torch.logsumexp(_widened(logits), -1)


@fusable
def unscaled_log_sum_exp(logits: Tensor, rstd: Tensor, real: int) -> Tensor:
    """Like :func:`log_sum_exp`, of the first ``real`` columns of logits to be multiplied by ``rstd``."""
    return torch.logsumexp(_widened(_by_shard(logits, rstd).flatten(-2)[:, :real]), -1)


@fusable
def logit_grad(out: Tensor, logits: Tensor, log_total: Tensor, index: Tensor, weight: Tensor) -> None:
    """out = weight · (exp(logits - log_total) - onehot(index)), [rows, vocabulary]; the others [rows, 1].

    An ``index`` outside the vocabulary is another process's target.
    """
    size = logits.shape[-1]
    gradient = (_widened(logits) - log_total).exp_().mul_(weight)
    if compiling():
        # A scatter would not fuse and need a separate pass over memory.
        at_target = torch.arange(size, device=logits.device) == index
        gradient = torch.where(at_target, gradient - weight, gradient)
    elif size:
        here = (index >= 0) & (index < size)
        gradient.scatter_add_(-1, index.clamp(0, size - 1), torch.where(here, -weight, 0.0))
    out.copy_(gradient)


@fusable
def unscaled_logit_grad(
    logits: Tensor, rstd: Tensor, real: int, of_rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``logits`` [rows, vocabulary] and of ``rstd`` [rows, r] by which to scale them.

    ``of_rows`` are the last three arguments of :func:`logit_grad`. Columns from ``real`` on have no gradient.
    """
    log_total, index, weight = of_rows
    column = torch.arange(logits.shape[-1], device=logits.device)
    gradient = (_widened(_by_shard(logits, rstd).flatten(-2)) - log_total).exp() * weight
    gradient = torch.where(column == index, gradient - weight, gradient)
    gradient = torch.where(column < real, gradient, 0.0).to(logits.dtype)
    rstd_grad = gradient.to(rstd.dtype) * logits
    return (
        _by_shard(gradient, rstd).flatten(-2),
        rstd_grad.unflatten(-1, (rstd.shape[-1], -1)).sum(-1),
    )


def _by_shard(x: Tensor, rstd: Tensor) -> Tensor:
    """Return ``x`` [rows, vocabulary] times the factors ``rstd`` [rows, r], as [rows, r, vocabulary / r]."""
    return scaled(x.unflatten(-1, (rstd.shape[-1], -1)), rstd)


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _row_slices(logits: Tensor, compiled: bool) -> list[slice]:
    """Split the rows into chunks of limited size; a compiled kernel takes all rows at once."""
    tokens, size = logits.shape
    step = max(tokens, 1) if compiled else max(LOSS_CHUNK // size, 1)
    return [slice(first, first + step) for first in range(0, max(tokens, 1), step)]


def mask_padding(logits: Tensor, vocab_size: int, mesh: Mesh) -> Tensor:
    """Set padding entries of the local logits [..., local vocabulary] to the smallest finite value."""
    size = logits.shape[-1]
    real = vocab_size - mesh.tensor_rank * size
    if real >= size:
        return logits
    padding = torch.arange(size, device=logits.device) >= real
    return logits.masked_fill(padding, torch.finfo(logits.dtype).min)


def vocab_parallel_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    vocab_size: int,
    mesh: Mesh,
    *,
    compiled: bool = False,
    rstd: Tensor | None = None,
) -> Tensor:
    """Return -log softmax(logits)[target] of every token, in float32 (float64 for float64 logits).

    ``logits`` [..., local vocabulary] is this process's slice, in rank order; ``targets`` [...]. Entries at
    or past ``vocab_size`` are padding and get no probability. Where the target is -100, loss and gradient
    are 0 (a loss mask); all other targets must be in [0, vocab_size). Returns [...], the same on every
    process; backward needs no communication. ``compiled``: each pass over the logits is one kernel. Then
    ``rstd`` [..., r] may hold a factor by which the logits of each of r shards are still to be multiplied.
    """
    size = logits.shape[-1]
    real = min(max(vocab_size - mesh.tensor_rank * size, 0), size)
    factors = None if rstd is None else rstd.flatten(0, -2)
    losses = _CrossEntropy.apply(logits.flatten(0, -2), factors, targets.flatten(), real, mesh, compiled)
    return losses.view_as(targets)
