"""RMSNorm of a stream, each shard over what it sees itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from caat.parallel.collectives import sum_gradient
from caat.parallel.mesh import Mesh
from caat.parallel.stream import Stream


class Normed(NamedTuple):
    """A stream that the column-parallel layer reading it will normalise (one pass, nothing stored)."""

    stream: Stream
    weight: Tensor
    eps: float


class RMSNorm(nn.Module):
    """x / rms(x) · weight on each shard (Zhang and Sennrich 2019), applied by the next column-parallel layer.

    The weight is replicated and every shard sees another stream, so its gradient is summed over all
    shards. ``forward(x, weight)`` takes a weight whose gradient is summed already: a model with many
    norms sums them in one message (see :class:`layers.GPT`).
    """

    def __init__(self, hidden: int, mesh: Mesh, eps: float = 1e-5) -> None:
        super().__init__()
        self.mesh, self.eps = mesh, eps
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Stream, weight: Tensor | None = None) -> Normed:
        if weight is None:
            weight = sum_gradient(self.weight, self.mesh.tensor, "replicated")
        return Normed(x, weight, self.eps)
