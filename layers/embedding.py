"""Vocabulary-parallel embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caat.parallel.mesh import Mesh
from layers.sharding import Sharding


class _SumForward(torch.autograd.Function):
    """All-reduce forward, identity backward (Megatron's *g*)."""

    @staticmethod
    def forward(ctx, x: Tensor, mesh: Mesh) -> Tensor:  # type: ignore[override]
        return mesh.tensor.all_reduce(x.clone(), "forward", "embedding")

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return gradient, None


class VocabParallelEmbedding(nn.Module):
    """Rows of the table are cut over the shards: [batch, seq] -> [batch, seq, hidden], the same everywhere.

    Weight [r, vocab / N, hidden]. Raises ``ValueError`` if N does not divide the (padded) vocabulary.
    """

    def __init__(self, padded_vocab: int, hidden: int, mesh: Mesh) -> None:
        super().__init__()
        self.sharding = Sharding(0, (padded_vocab,))
        self.sharding.check(mesh.shards, "padded_vocab")
        self.mesh = mesh
        self.weight = nn.Parameter(torch.randn(mesh.local, padded_vocab // mesh.shards, hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        # The local shards are consecutive, so they are one table of consecutive rows.
        table = self.weight.flatten(0, 1)
        if self.mesh.processes == 1:
            return F.embedding(tokens, table)
        local = tokens - self.mesh.tensor_rank * table.shape[0]
        elsewhere = (local < 0) | (local >= table.shape[0])
        x = F.embedding(local.masked_fill(elsewhere, 0), table).masked_fill(elsewhere.unsqueeze(-1), 0.0)
        return _SumForward.apply(x, self.mesh)
