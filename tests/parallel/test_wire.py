"""Types on the wire: what is sent, how it is added, what is counted."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from caat.parallel.collectives import Collectives
from caat.parallel.sums import SumOptions, sum_by_slices
from conf.sync import SyncConfig


def terms(world: int, size: int) -> list[torch.Tensor]:
    """Everybody's bfloat16 message: magnitudes far apart, so that the order and type of a sum show."""
    generator = torch.Generator().manual_seed(size)
    return [
        (
            torch.randn(size, generator=generator)
            * 10.0 ** torch.randint(-2, 3, (size,), generator=generator)
        ).bfloat16()
        for _ in range(world)
    ]


def summed(sizes: list[int], options: SumOptions):
    rank, world = dist.get_rank(), dist.get_world_size()
    collectives = Collectives(world, None, options)
    results = []
    for size in sizes:
        message = terms(world, size)[rank].clone()
        collectives.start_sum(message, "forward", "sync")()
        results.append(message)
    return results, dict(collectives.ledger.sent)


def sliced(sizes: list[int]):
    rank, world = dist.get_rank(), dist.get_world_size()
    results = []
    for size in sizes:
        message = terms(world, size)[rank].clone()
        sum_by_slices(message, None, torch.float32)
        results.append(message)
    return results


def float32_all_reduce(sizes: list[int]):
    results = []
    for size in sizes:
        message = terms(dist.get_world_size(), size)[dist.get_rank()].float()
        dist.all_reduce(message)
        results.append(message.bfloat16())
    return results


SIZES = [1, 2, 7, 4096, 4099]


def test_two_processes_equal_a_float32_all_reduce_bit_for_bit(ranks):
    pool = ranks(2)
    want = pool.run(float32_all_reduce, SIZES)
    (default, sent), _ = pool.run(summed, SIZES, SumOptions())
    assert sent == {("forward", "sync"): 2 * sum(SIZES)}
    for got in (default, pool.run(sliced, SIZES)[1]):
        for ours, theirs in zip(got, want[0], strict=True):
            assert torch.equal(ours, theirs)


def test_four_processes_round_once(ranks):
    """Within one rounding of the exact sum, where a plain bfloat16 all-reduce rounds three times."""
    pool = ranks(4)
    results = pool.run(summed, SIZES, SumOptions())
    plain = pool.run(summed, SIZES, SumOptions(sum_dtype=torch.bfloat16))
    assert results[0][1] == plain[0][1] == {("forward", "sync"): 2 * sum(SIZES)}
    for index, size in enumerate(SIZES):
        exact = torch.stack(terms(4, size)).double().sum(0)
        once = results[0][0][index]
        # float32 sums round too, by 2^-24 of the largest term: that may tip a tie, nothing more.
        largest = torch.stack(terms(4, size)).abs().amax(0).double()
        assert ((once.double() - exact).abs() <= exact.abs() * 2**-8 + largest * 2**-22).all()
        for rank in range(1, 4):
            assert torch.equal(results[rank][0][index], once)
    worse = [
        (a[-1].double() - torch.stack(terms(4, SIZES[-1])).double().sum(0)).abs().sum()
        for a in (plain[0][0], results[0][0])
    ]
    assert worse[0] > 1.2 * worse[1]


def test_a_wider_or_narrower_wire_is_counted_as_sent(ranks):
    (results, sent), _ = ranks(2).run(summed, SIZES, SumOptions(wire_dtype=torch.float32))
    assert sent == {("forward", "sync"): 4 * sum(SIZES)}
    assert all(result.dtype is torch.bfloat16 for result in results)


@pytest.mark.parametrize("world", [2, 4])
def test_overlap_gives_the_same_bits(ranks, world):
    pool = ranks(world)
    waited, _ = pool.run(summed, SIZES, SumOptions(overlap=False))[0]
    hidden, _ = pool.run(summed, SIZES, SumOptions(overlap=True))[0]
    assert all(torch.equal(a, b) for a, b in zip(waited, hidden, strict=True))


def test_settings():
    assert SumOptions.of(SyncConfig()) == SumOptions(None, torch.float32, True)
    sync = SyncConfig(wire_dtype="bfloat16", sum_dtype="bfloat16", overlap=False)
    assert SumOptions.of(sync) == SumOptions(torch.bfloat16, torch.bfloat16, False)
    assert SumOptions.of(SyncConfig(wire_dtype="int8")) == SumOptions(torch.int8)
    SyncConfig(sum_dtype="bfloat16").check_types("bf16")
    SyncConfig(wire_dtype="int8", sum_dtype="float32").check_types("fp32")
    with pytest.raises(ValueError, match="sum_dtype=bfloat16 is narrower than the float32 messages"):
        SyncConfig(sum_dtype="bfloat16").check_types("fp32")
    with pytest.raises(ValueError, match="wire_dtype=int4 is not known"):
        SyncConfig(wire_dtype="int4")
    with pytest.raises(ValueError, match="sum_dtype=bfloat16 does not go with"):
        SyncConfig(wire_dtype="int8", sum_dtype="bfloat16").check_types("bf16")
