"""Passes of few tokens without gradients: the same numbers as with gradients, and few operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import FEW_TOKENS, WholeStream, enter
from caat.parallel.sums import SumOptions
from layers import RowParallelLinear
from tests.models import SMALL, batch, build

RATIOS = (0.0, 0.5, 1.0)


def both_ways(shards: int, processes: int, ratio: float, options: SumOptions | None = None):
    """Logits and their counted bytes on the direct path, and on the one that training takes."""
    mesh = Mesh(shards) if processes == 1 else Mesh.create(shards, processes, options)
    model = build(mesh, ratio)
    tokens, _ = batch(size=3)
    found = []
    for gradients in (False, True):
        mesh.tensor.ledger.reset()
        with torch.set_grad_enabled(gradients):
            found.append((model(tokens).detach(), dict(mesh.tensor.ledger.sent)))
    return found


def compare(found) -> None:
    (direct, sent), (split, also_sent) = found
    assert sent == also_sent
    torch.testing.assert_close(direct, split, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
def test_logits_are_those_of_a_pass_with_gradients(ranks, ratio):
    for shards in (1, 2, 4):
        compare(both_ways(shards, 1, ratio))
    for shards in (2, 4):
        for found in ranks(2).run(both_ways, shards, 2, ratio):
            compare(found)
    for found in ranks(2).run(both_ways, 4, 2, ratio, SumOptions(torch.int8)):
        compare(found)


def test_few_tokens_without_gradients_take_it():
    x = torch.randn(2, FEW_TOKENS // 2, 12)
    assert not isinstance(enter(x, 6, Mesh(2)), WholeStream)
    with torch.no_grad():
        assert isinstance(enter(x, 6, Mesh(2)), WholeStream)
        assert not isinstance(enter(torch.cat([x, x]), 6, Mesh(2)), WholeStream)


@torch.no_grad()
def test_a_stream_can_be_read_twice():
    row, a, x = RowParallelLinear(8, 12, Mesh(2), ratio=0.5), torch.randn(3, 8), torch.randn(3, 12)
    stream = enter(x, 6, Mesh(2))
    first = row(a, stream).stack()
    assert torch.equal(row(a, stream).stack(), first)
    assert torch.equal(stream.stack(), x.expand(2, 3, 12))


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def operations(ratio: float) -> int:
    """Operations of a pass of one token."""
    model = build(Mesh.create(2, 2), ratio)
    with Operations() as seen:
        model(torch.zeros(1, 1, dtype=torch.long))
    return seen.count


def test_private_channels_cost_six_more_operations_a_layer(ranks):
    """A GEMM with views of its weight and input, and adding it to a view of the stream."""
    partial, full = (ranks(2).run(operations, ratio)[0] for ratio in (0.5, 1.0))
    assert partial - full <= 2 * SMALL.layers * 6
