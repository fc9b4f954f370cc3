"""How the shards of a weight are cut from its full, unsharded parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sharding:
    """One or more full matrices, each cut along ``dim`` into N equal slices; shard i stacks the i-th slices.

    ``sizes`` are the full lengths of the parts along ``dim``: (q, k, v) for a fused projection.
    """

    dim: int
    sizes: tuple[int, ...]

    def check(self, shards: int, what: str) -> None:
        """Raise ``ValueError`` unless every part can be cut into ``shards`` slices."""
        for size in self.sizes:
            if size % shards:
                raise ValueError(f"{what}={size} is not divisible by {shards} tensor-parallel shards")

    def cut(self, parts: Sequence[Tensor], shards: int, which: Iterable[int]) -> Tensor:
        """The shards numbered ``which`` of ``shards``, side by side, from the full parts."""
        sliced = [part.chunk(shards, self.dim) for part in parts]
        return torch.cat([slices[i] for i in which for slices in sliced], self.dim)
