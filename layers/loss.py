"""Vocabulary-parallel cross-entropy: full logits never exist in one place."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.mesh import Mesh


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, mesh: Mesh) -> Tensor:  # type: ignore[override]
        wide = torch.promote_types(logits.dtype, torch.float32)
        # Each shard's own softmax first, in one kernel; then only one number per shard and token is left.
        local = F.log_softmax(logits, -1, dtype=wide)
        local_total = logits[..., 0].to(wide) - local[..., 0]
        index, here = _local_targets(logits, targets, mesh)
        picked = (local.gather(-1, index).squeeze(-1) + local_total).masked_fill(~here, 0.0).sum(0)
        largest = mesh.tensor.all_reduce(local_total.amax(0), "forward", "loss", dist.ReduceOp.MAX)
        total = (local_total - largest).exp_().sum(0)
        # One message for both sums.
        total, picked = mesh.tensor.all_reduce(torch.stack([total, picked]), "forward", "loss")
        log_total = total.log() + largest
        ctx.save_for_backward(local, (local_total - log_total).exp_(), index, here)
        ctx.dtype = logits.dtype
        return log_total - picked

    @staticmethod
    def backward(ctx, loss_grad: Tensor):  # type: ignore[override]
        local, share, index, here = ctx.saved_tensors
        gradient = local.exp().mul_((share * loss_grad).unsqueeze(-1))
        gradient.scatter_add_(-1, index, torch.where(here, -loss_grad, 0.0).unsqueeze(-1))
        return gradient.to(ctx.dtype), None, None


def _local_targets(logits: Tensor, targets: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Index of the target in each local slice [r, ..., 1] (0 if elsewhere); is it there [r, ...]?"""
    size = logits.shape[-1]
    first = torch.tensor([i * size for i in mesh.local_shards], device=targets.device)
    index = targets - first.view(-1, *[1] * targets.dim())
    here = (index >= 0) & (index < size)
    return index.masked_fill(~here, 0).unsqueeze(-1), here


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int, mesh: Mesh) -> Tensor:
    """-log softmax(logits)[target] of every token, in float32 (float64 for float64 logits).

    ``logits`` [r, ..., padded vocabulary / N], slice i on shard i; ``targets`` [...]. Entries at or past
    ``vocab_size`` are padding and get no probability. Returns [...], the same on every process; backward
    needs no communication.
    """
    size = logits.shape[-1]
    if size * mesh.shards > vocab_size:
        first = torch.tensor([i * size for i in mesh.local_shards], device=logits.device)
        number = first.unsqueeze(-1) + torch.arange(size, device=logits.device)
        padding = (number >= vocab_size).view(-1, *[1] * targets.dim(), size)
        logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
    return _CrossEntropy.apply(logits, targets, mesh)
