"""Full tensors cut into shards and joined again, against plain slicing and concatenation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caat.parallel import sharding
from caat.parallel.sharding import FullTensors, Sharding

SHARDS = 4
# Shapes of two fused parts, split along the dim that is the key, and their lengths with padding. Of the
# padded part, one shard holds a single row and one holds only padding. Only rows are ever padded.
SHAPES = {0: ((8, 3), (9, 3)), 1: ((13, 8), (13, 12))}
PADDED = {0: (8, 16), 1: (8, 12)}


def full_parts(dim: int) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in SHAPES[dim]]


def side_by_side(parts: list[Tensor], dim: int) -> list[Tensor]:
    """Return every shard: its slice of each padded part, one after the other."""
    if dim == 0:
        rows = zip(parts, PADDED[0], strict=True)
        parts = [torch.nn.functional.pad(part, (0, 0, 0, padded - len(part))) for part, padded in rows]
    slices = [part.chunk(SHARDS, dim) for part in parts]
    return [torch.cat(of_shard, dim) for of_shard in zip(*slices, strict=True)]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_cut_and_joined_again(dim, processes, monkeypatch):
    parts, local = full_parts(dim), SHARDS // processes
    shards, plan = side_by_side(parts, dim), Sharding(dim, PADDED[dim], SHARDS)
    tensors = FullTensors("fused", ("a", "b"), SHAPES[dim], plan)
    by_name, held = dict(zip(tensors.names, parts, strict=True)), []
    for process in range(processes):
        which = range(process * local, (process + 1) * local)
        want = torch.cat([shards[number] for number in which], dim)
        assert torch.equal(plan.cut(parts, which), want)
        assert tensors.local_shape(processes) == tuple(want.shape)
        held.append(torch.full_like(want, torch.nan))
        tensors.fill(held[-1], which, lambda name, shape: by_name[name])
        assert torch.equal(held[-1], want)
    # A row above the size of a strip, strips of two rows of which the last is shorter, all rows in a strip.
    for size in (1, 2 * 4 * 12, 2**20):
        monkeypatch.setattr(sharding, "STRIP_BYTES", size)
        for number, part in enumerate(parts):
            assert torch.equal(torch.cat(list(tensors.strips(number, held))), part)
