"""The residual stream of a partially synchronised model: shared channels once, private ones per shard."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from caat.parallel.collectives import sum_gradient
from caat.parallel.mesh import Mesh


class Stream(NamedTuple):
    """Activations of h channels on the r local shards, of which the first k are the same on every shard.

    ``shared``  [..., k]         stored once, though every shard reads it: gradients of all local readers
                                 add up here, and partial synchronisation sums them over the processes.
    ``private`` [r, ..., h - k]  one per shard.
    """

    shared: Tensor
    private: Tensor

    def stack(self) -> Tensor:
        """The plain form [r, ..., h]: what each local shard sees."""
        shards = self.private.shape[0]
        return torch.cat([self.shared.expand(shards, *self.shared.shape), self.private], dim=-1)


def enter(x: Tensor, shared_channels: int, mesh: Mesh) -> Stream:
    """Start a stream from ``x`` [..., h], the same on every shard; its gradient is summed over all shards."""
    x = sum_gradient(x, mesh.tensor, "embedding")
    private = x[..., shared_channels:]
    return Stream(x[..., :shared_channels], private.expand(mesh.local, *private.shape))
