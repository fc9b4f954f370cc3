"""How the shards of a weight and its full, unsharded parts make each other."""

from __future__ import annotations

from collections.abc import Sequence
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

    def cut(self, parts: Sequence[Tensor], shards: int, index: int) -> Tensor:
        """Shard ``index`` of ``shards``, from the full parts."""
        return torch.cat([part.chunk(shards, self.dim)[index] for part in parts], self.dim)

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """The full parts, from all shards in order."""
        lengths = [size // len(shards) for size in self.sizes]
        pieces = [shard.split(lengths, self.dim) for shard in shards]
        return [torch.cat(slices, self.dim) for slices in zip(*pieces, strict=True)]
