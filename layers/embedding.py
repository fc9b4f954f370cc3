"""Vocabulary-parallel embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caat.parallel.autograd import sum_forward
from caat.parallel.mesh import Mesh
from caat.parallel.sharding import Sharding


class VocabParallelEmbedding(nn.Module):
    """Embedding with table rows split over the shards: [batch, seq] -> [batch, seq, hidden], replicated.

    Weight [local vocabulary, hidden]. Tokens must be in [0, padded vocabulary): others raise an error on one
    process and give a vector of zeros on several. Raises ``ValueError`` if N does not divide the (padded)
    vocabulary.
    """

    def __init__(self, padded_vocab: int, hidden: int, mesh: Mesh) -> None:
        super().__init__()
        self.sharding = Sharding(0, (padded_vocab,), mesh.shards)
        self.sharding.check("padded_vocab")
        self.mesh = mesh
        # Draw the full table, like the linears: with the same seed, all processes draw the same numbers.
        full = torch.empty(padded_vocab, hidden)
        if not full.is_meta:  # there, it would import sympy and torch's compiler, for nothing
            full.normal_()
        self.weight = nn.Parameter(self.sharding.cut([full], mesh.local_shards))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.mesh.processes == 1:
            return F.embedding(tokens, self.weight)
        local = tokens - self.mesh.tensor_rank * len(self.weight)
        elsewhere = (local < 0) | (local >= len(self.weight))
        x = F.embedding(local.masked_fill(elsewhere, 0), self.weight).masked_fill(
            elsewhere.unsqueeze(-1), 0.0
        )
        return sum_forward(x, self.mesh.tensor, "embedding")
