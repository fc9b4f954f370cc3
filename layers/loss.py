"""Vocabulary-parallel cross-entropy: full logits never exist in one place."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.mesh import Mesh

# A target that counts for nothing, as in torch.
IGNORED = -100


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, mesh: Mesh) -> Tensor:  # type: ignore[override]
        wide = torch.promote_types(logits.dtype, torch.float32)
        # The local slice's own softmax first, in one kernel; then one number per token is left to combine.
        local = F.log_softmax(logits, -1, dtype=wide)
        local_total = logits[..., 0].to(wide) - local[..., 0]
        size = logits.shape[-1]
        index = targets - mesh.tensor_rank * size
        here = (index >= 0) & (index < size)
        index = index.masked_fill(~here, 0).unsqueeze(-1)
        picked = (local.gather(-1, index).squeeze(-1) + local_total).masked_fill(~here, 0.0)
        largest = mesh.tensor.all_reduce(local_total.clone(), "forward", "loss", dist.ReduceOp.MAX)
        # One message for both sums.
        both = torch.stack([(local_total - largest).exp_(), picked])
        total, picked = mesh.tensor.all_reduce(both, "forward", "loss")
        log_total = total.log() + largest
        ignored = targets == IGNORED
        # Without a share in the sum there is no gradient.
        share = (local_total - log_total).exp_().masked_fill_(ignored, 0.0)
        ctx.save_for_backward(local, share, index, here)
        ctx.dtype = logits.dtype
        return (log_total - picked).masked_fill_(ignored, 0.0)

    @staticmethod
    def backward(ctx, loss_grad: Tensor):  # type: ignore[override]
        local, share, index, here = ctx.saved_tensors
        gradient = local.exp().mul_((share * loss_grad).unsqueeze(-1))
        gradient.scatter_add_(-1, index, torch.where(here, -loss_grad, 0.0).unsqueeze(-1))
        return gradient.to(ctx.dtype), None, None


def mask_padding(logits: Tensor, vocab_size: int, mesh: Mesh) -> Tensor:
    """This process's slice of the logits [..., local vocabulary], the least where it is only padding."""
    size = logits.shape[-1]
    real = vocab_size - mesh.tensor_rank * size
    if real >= size:
        return logits
    padding = torch.arange(size, device=logits.device) >= real
    return logits.masked_fill(padding, torch.finfo(logits.dtype).min)


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int, mesh: Mesh) -> Tensor:
    """-log softmax(logits)[target] of every token, in float32 (float64 for float64 logits).

    ``logits`` [..., local vocabulary], the slices of the processes in rank order; ``targets`` [...]. Entries
    at or past ``vocab_size`` are padding and get no probability. Where the target is -100 the loss is 0, as
    is its gradient (a loss mask); all others must be in [0, vocab_size). Returns [...], the same on every
    process; backward needs no communication.
    """
    logits = mask_padding(logits, vocab_size, mesh)
    if mesh.processes == 1:
        wide = torch.promote_types(logits.dtype, torch.float32)
        losses = F.cross_entropy(
            logits.flatten(0, -2).to(wide), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view_as(targets)
    return _CrossEntropy.apply(logits, targets, mesh)
