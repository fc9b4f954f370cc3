"""The linears on their own, against plain matrix products in float64."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.parallel.stream import enter
from layers import ColumnParallelLinear, RowParallelLinear


def double(layer):
    return layer.to(torch.float64)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_column_then_row_is_two_plain_linears(shards):
    torch.manual_seed(0)
    mesh = Mesh(shards)
    column, row = double(ColumnParallelLinear(12, 24, mesh)), double(RowParallelLinear(24, 12, mesh))
    # All shards are here, side by side: the full matrices.
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    out = row(column(x.expand(shards, 2, 5, 12)), enter(x, 12, mesh))
    torch.testing.assert_close(out.shared, x + x @ column.weight.T @ row.weight.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_row_gradient_is_exact(ratio):
    mesh = Mesh(2)
    row = double(RowParallelLinear(8, 12, mesh, ratio))
    a, x = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (8, 12))

    def stacked(a, weight, x):
        stream = enter(x, row.shared_channels, mesh)
        return torch.func.functional_call(row, {"weight": weight}, (a, stream)).stack()

    assert torch.autograd.gradcheck(stacked, (a, row.weight, x))


def test_another_ratio_than_the_stream_is_refused():
    row = RowParallelLinear(8, 12, Mesh(2), ratio=0.5)
    with pytest.raises(ValueError, match="the stream shares 3 channels and this layer 6"):
        row(torch.ones(3, 8), enter(torch.ones(3, 12), 3, Mesh(2)))


def test_same_seed_same_full_matrix():
    full = []
    for shards in (1, 2, 4):
        torch.manual_seed(3)
        layer = ColumnParallelLinear(6, 8, Mesh(shards))
        full.append(layer.weight)
    assert torch.equal(full[0], full[1]) and torch.equal(full[0], full[2])


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="out_features=10 is not divisible by 4"):
        ColumnParallelLinear(6, 10, Mesh(4))
    with pytest.raises(ValueError, match="in_features=10"):
        RowParallelLinear(10, 6, Mesh(4))
    with pytest.raises(ValueError, match=r"ratio=1.5 is outside \[0, 1\]"):
        RowParallelLinear(8, 6, Mesh(4), ratio=1.5)
