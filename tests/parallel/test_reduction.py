"""Sums of gradients through codecs, on real processes, against the same codecs in one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from caat.compression import Feedback, make_codec
from caat.parallel.data_axis import DataAxis
from caat.parallel.mesh import Mesh
from caat.parallel.reduction import Reduction
from conf.data_sync import DataSyncConfig

REPLICAS, STEPS = 3, 3
# The second slice is empty, the third is shorter than a block.
SIZES = (700, 0, 130)
SLICED = ("int8", "int4", "sign", "bfloat16", "topk:0.1", "threshold:1,index=huffman")
LINEAR = ("randomk:0.2", "powersgd:2")
# All ranks draw the same places, and send only the values there.
DRAWN = ("randomk:0.2,values=int8", "randomk:0.2,values=poly")


def gradient(rank: int, step: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(sum(SIZES), generator=g) ** 3


def reduction(axis: DataAxis, codec: str, feedback: bool = True) -> Reduction:
    assert axis.zero is not None
    settings = DataSyncConfig(codec=codec, feedback=feedback)
    return Reduction(axis.zero.gradients.exchange, settings, axis._count, seed=3)


def reduced(codecs: list[str]) -> dict:
    """By codec: what this rank owns and what all ranks get, for each step, and the bytes it sent."""
    axis, rank, found = Mesh.create(1, 1).data, dist.get_rank(), {}
    for codec in codecs:
        to_owner, to_all = reduction(axis, codec), reduction(axis, codec)
        owned, whole, sent = [], [], 0
        for step in range(STEPS):
            axis.ledger.reset()
            to_owner.begin(), to_all.begin()
            to_owner.codec.counter.start(step), to_all.codec.counter.start(step)
            if to_owner.codec.way != "linear":
                owned.append(to_owner.to_owners(gradient(rank, step).split(SIZES)))
            sent += axis.ledger.sent["step", "gradients"]
            to_all.everywhere(flat := gradient(rank, step))
            whole.append(flat)
        found[codec] = owned, whole, sent
    return found


def at_owner(codec: str, sizes: tuple[int, ...], owner: int) -> list[torch.Tensor]:
    """What ``owner`` gets of its slice, in one process: its own numbers, and the others' as they decode."""
    feedbacks = [Feedback(make_codec(codec)) for _ in range(REPLICAS)]
    sums = []
    for step in range(STEPS):
        slices = [gradient(rank, step).split(sizes)[owner] for rank in range(REPLICAS)]
        parts = [
            each if rank == owner else decoded(feedback, each)
            for rank, (each, feedback) in enumerate(zip(slices, feedbacks, strict=True))
        ]
        sums.append(parts[0] + parts[1] + parts[2])
    return sums


def decoded(feedback: Feedback, flat: torch.Tensor) -> torch.Tensor:
    codec = feedback.codec
    return codec.decode(feedback.encode(0, flat), len(flat)) if len(flat) and codec.biased else flat


def everywhere(codec: str) -> list[torch.Tensor]:
    """What all ranks get, in one process."""
    if make_codec(codec).way == "gathered":
        feedbacks = [Feedback(make_codec(codec)) for _ in range(REPLICAS)]
        parts = [[decoded(f, gradient(r, s)) for r, f in enumerate(feedbacks)] for s in range(STEPS)]
        return [each[0] + each[1] + each[2] for each in parts]
    # 830 numbers are four blocks of 256, two for each owner.
    sizes, again = (512, 318, 0), [Feedback(make_codec(codec)) for _ in range(REPLICAS)]
    owned = [at_owner(codec, sizes, owner) for owner in range(REPLICAS)]
    return [
        torch.cat([decoded(f, sums[step]) for f, sums in zip(again, owned, strict=True)])
        for step in range(STEPS)
    ]


def test_owners_get_what_one_process_decodes(ranks):
    codecs = [*SLICED, "none", "randomk:1,values=int8"]
    for rank, found in enumerate(ranks(REPLICAS).run(reduced, codecs)):
        for codec in codecs:
            owned, _, sent = found[codec]
            wanted = at_owner(codec, SIZES, rank)
            assert all(torch.equal(a, b) for a, b in zip(owned, wanted, strict=True)), codec
            if make_codec(codec).exact_size:
                others = [n for owner, n in enumerate(SIZES) if owner != rank and n]
                assert sent == STEPS * sum(make_codec(codec).size(n) for n in others), codec


def test_all_ranks_get_the_same_sum(ranks):
    exact = ["topk:1", "powersgd:100"]
    codecs = [*SLICED, *LINEAR, *DRAWN, "qsgd:7", "tern", "natural", *exact]
    results = ranks(REPLICAS).run(reduced, codecs)
    for codec in codecs:
        sums = [found[codec][1] for found in results]
        for step in range(STEPS):
            assert all(torch.equal(sums[0][step], each[step]) for each in sums), codec
            if codec in SLICED:
                assert torch.equal(sums[0][step], everywhere(codec)[step]), codec
            if codec in DRAWN:
                # All ranks sent the same places.
                assert sums[0][step].count_nonzero() <= round(0.2 * sum(SIZES)), codec
            if codec in exact:
                total = sum(gradient(rank, step) for rank in range(REPLICAS))
                assert torch.allclose(sums[0][step], total, atol=2e-5), codec


def kept(codec: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All that was given, all that arrived, and the residuals, over some steps, summed over the ranks."""
    axis, rank = Mesh.create(1, 1).data, dist.get_rank()
    to_all, given, arrived = reduction(axis, codec), torch.zeros(sum(SIZES)), torch.zeros(sum(SIZES))
    for step in range(4):
        to_all.begin()
        to_all.codec.counter.start(step)
        given += gradient(rank, step)
        to_all.everywhere(flat := gradient(rank, step))
        arrived += flat
    assert to_all.feedback is not None
    left = torch.zeros(sum(SIZES))
    for (_, n), residual in to_all.feedback.residuals.items():
        assert n == len(left)
        left += residual
    for each in (given, left):
        dist.all_reduce(each)
    return given, arrived, left


@pytest.mark.parametrize("codec", ["topk:0.1", "randomk:0.2", *DRAWN, "powersgd:2", "threshold:4"])
def test_what_did_not_arrive_is_kept(ranks, codec):
    given, arrived, left = ranks(REPLICAS).run(kept, codec)[0]
    assert left.norm() > 0.1 * given.norm()
    assert torch.allclose(arrived + left, given, rtol=0, atol=2e-4)


def not_finite(codec: str) -> bool:
    axis, rank = Mesh.create(1, 1).data, dist.get_rank()
    to_all, to_owner = reduction(axis, codec), reduction(axis, codec)
    bad = gradient(rank, 0)
    if rank == 1:
        bad[5] = torch.inf
    to_all.everywhere(whole := bad.clone())
    linear = to_owner.codec.way == "linear"
    owned = whole if linear else to_owner.to_owners(bad.split(SIZES))
    residuals = to_all.feedback.residuals.values() if to_all.feedback else []
    finite = all(bool(each.isfinite().all()) for each in residuals)
    return finite and not whole.isfinite().all() and (rank > 0 or not bool(owned.isfinite().all()))


@pytest.mark.parametrize("codec", ["int8", "sign", "topk:0.1", "powersgd:2", "randomk:0.2", "tern"])
def test_what_is_not_finite_is_never_hidden_nor_kept(ranks, codec):
    assert all(ranks(REPLICAS).run(not_finite, codec))
