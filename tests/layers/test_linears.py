"""The linears on their own, against plain matrix products in float64."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import enter
from caat.parallel.sums import SumOptions
from layers import ColumnParallelLinear, RMSNorm, RowParallelLinear, vocab_parallel_cross_entropy
from layers.loss import mask_padding


def double(layer):
    return layer.to(torch.float64)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_column_then_row_is_two_plain_linears(shards):
    torch.manual_seed(0)
    mesh = Mesh(shards)
    column, row = double(ColumnParallelLinear(12, 24, mesh)), double(RowParallelLinear(24, 12, mesh))
    # All shards are in this process, side by side: the full matrices.
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    out = row(column(x.expand(shards, 2, 5, 12)), enter(x, 12, mesh))
    torch.testing.assert_close(out.shared, x + x @ column.weight.T @ row.weight.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_row_gradient_is_exact(ratio):
    mesh = Mesh(2)
    row = double(RowParallelLinear(8, 12, mesh, ratio, private_scale=1.5))
    a, x = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (8, 12))

    def stacked(a, weight, x):
        stream = enter(x, row.shared_channels, mesh)
        return torch.func.functional_call(row, {"weight": weight}, (a, stream)).stack()

    assert torch.autograd.gradcheck(stacked, (a, row.weight, x))


def test_another_ratio_than_the_stream_is_refused():
    row = RowParallelLinear(8, 12, Mesh(2), ratio=0.5)
    with pytest.raises(ValueError, match="the stream shares 3 channels, but this layer 6"):
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


def norms_that_sum_their_own_gradients(overlap: bool):
    """Gradients of a model whose norms need their sums while those of the layers are in flight."""
    mesh = Mesh.create(4, 4, SumOptions(torch.bfloat16, overlap=overlap))
    torch.manual_seed(1)
    norms = [RMSNorm(64, mesh) for _ in range(3)]
    ups = [ColumnParallelLinear(64, 256, mesh) for _ in norms]
    downs = [RowParallelLinear(256, 64, mesh, 0.5) for _ in norms]
    x = enter(torch.randn(2, 64, 64), 32, mesh)
    for norm, up, down in zip(norms, ups, downs, strict=True):
        x, y = up.after_norm(norm(x))
        x = down.before_norm(torch.relu(y), x)
    x.settled().stack().square().mean().backward()
    return [layer.weight.grad for layer in (*norms, *ups, *downs)]


def test_sums_of_norms_wait_for_a_thread_that_sums(ranks):
    pool = ranks(4)
    for ours, theirs in zip(
        pool.run(norms_that_sum_their_own_gradients, True, timeout=60),
        pool.run(norms_that_sum_their_own_gradients, False),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def masked_loss(processes: int, vocabulary: int):
    mesh = Mesh.create(4, processes) if processes > 1 else Mesh(4)
    generator = torch.Generator().manual_seed(2)
    full = torch.randn(3, 7, 64, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (3, 7), generator=generator)
    targets[0, :4] = targets[2, 6] = -100
    logits = full.chunk(processes, -1)[mesh.tensor_rank].clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(logits, targets, vocabulary, mesh)
    losses.sum().backward()
    return losses.detach(), logits.grad, full, targets


# Two processes hold 32 columns each: with 61 entries the second holds 29, and with 30 it holds only padding.
@pytest.mark.parametrize("vocabulary", [61, 30])
def test_a_target_of_minus_100_counts_for_nothing_on_any_processes(ranks, vocabulary):
    losses, gradient, full, targets = masked_loss(1, vocabulary)
    plain = full.clone().requires_grad_()
    want = torch.nn.functional.cross_entropy(
        plain[..., :vocabulary].flatten(0, 1), targets.flatten(), reduction="none"
    )
    want.sum().backward()
    torch.testing.assert_close(losses.flatten(), want.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, plain.grad, rtol=0, atol=1e-12)
    assert losses[0, :4].eq(0).all() and gradient[0, :4].eq(0).all()
    parts = ranks(2).run(masked_loss, 2, vocabulary)
    for theirs, *_ in parts:
        torch.testing.assert_close(theirs, losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], -1), gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [61, 40])
def test_padding_entries_get_the_smallest_logit(vocabulary):
    """On four processes with 16 columns each; of 40 entries, the last process holds none."""
    full = torch.randn(2, 3, 64)
    parts = [
        mask_padding(part, vocabulary, Mesh(8, processes=4, tensor_rank=rank))
        for rank, part in enumerate(full.chunk(4, -1))
    ]
    masked = torch.cat(parts, -1)
    assert torch.equal(masked[..., :vocabulary], full[..., :vocabulary])
    assert masked[..., vocabulary:].eq(torch.finfo(full.dtype).min).all()
