"""RMSNorm of a stream: each shard normalises the shared channels together with its private ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from caat.parallel.autograd import sum_gradient
from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import AnyStream, Stream


class Normed(NamedTuple):
    """A stream to be normalised by the column-parallel layer that reads it (one pass, nothing stored)."""

    stream: AnyStream
    weight: Tensor
    eps: float

    def last(self) -> Normed:
        """Keep only the last token, [..., 1, h]."""
        shared, private, _ = self.stream.settled()
        return self._replace(stream=Stream(shared[..., -1:, :], private[..., -1:, :]))


class RMSNorm(nn.Module):
    """x / rms(x) · weight on each shard (Zhang and Sennrich 2019), applied by the next column-parallel layer.

    The weight is replicated but every shard has a different stream, so its gradient is summed over all
    shards. ``forward(x, weight)`` takes a weight whose gradient is already summed elsewhere: a model with
    many norms sums all of them in one message (:func:`norm_weights`).
    """

    def __init__(self, hidden: int, mesh: Mesh, eps: float = 1e-5) -> None:
        super().__init__()
        self.mesh, self.eps = mesh, eps
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: AnyStream, weight: Tensor | None = None) -> Normed:
        if weight is None:
            weight = sum_gradient(self.weight, self.mesh.tensor, "replicated")
        return Normed(x, weight, self.eps)


def scaled(y: Tensor, rstd: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Multiply ``y`` [..., r, *], a part of a product, by the factor [..., r] that was left out, if any.

    ``bias`` [r, *] is added then.

    Apply it to each part that a compiled kernel reads: applied to the whole product, torch.compile would
    write the result to memory.
    """
    dtype = y.dtype
    if rstd is not None:
        y = y * rstd.reshape(*rstd.shape, *[1] * (y.ndim - rstd.ndim))
    if bias is not None:
        y = y + bias
    return y.to(dtype)


def norm_weights(norms: Iterable[RMSNorm], mesh: Mesh) -> list[Tensor]:
    """Return the weights of all ``norms``, in order; one message sums all their gradients."""
    weights: list[Tensor] = [norm.weight for norm in norms]
    if not torch.is_grad_enabled():
        return weights
    summed = sum_gradient(torch.cat(weights), mesh.tensor, "replicated")
    return list(summed.split([len(weight) for weight in weights]))
