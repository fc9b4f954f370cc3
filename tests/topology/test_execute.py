"""Schedules on real gloo ranks: exact on integers, and the same bits on all ranks for floats."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import Tensor

from caat.topology.chunks import equal_chunks, owned_chunks
from caat.topology.execute import execute, execute_in_batches
from caat.topology.methods import METHODS, make_schedule
from caat.topology.schedule import Schedule
from tests.topology.by_hand import by_hand
from tests.topology.networks import unit

SUMS = [("mesh:2x2", method, "all-reduce") for method in METHODS]
SUMS += [("full:4", method, "all-reduce") for method in ("double-binary-tree", "multitree")]
HALVES = [("mesh:2x2", "multitree", "all-gather"), ("mesh:2x2", "2d-ring", "reduce-scatter")]
KINDS = ["int64", "float32"]
# The second leaves some chunks empty.
SIZES = [1003, 3]


def given(rank: int, n: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(100 + rank)
    if kind == "int64":
        return torch.randint(-(2**40), 2**40, (n,), generator=generator)
    return torch.randn(n, generator=generator)


def on_rank(schedule: Schedule, kind: str) -> list[Tensor]:
    rank = torch.distributed.get_rank()
    results = []
    for n in SIZES:
        for pieces in (1, 3):
            execute(schedule, data := given(rank, n, kind), pieces=pieces)
            results.append(data)
        execute_in_batches(schedule, data := given(rank, n, kind), equal_chunks(n, schedule.chunks))
        results.append(data)
    return results


def every_schedule(schedules: list[Schedule]) -> list[list[Tensor]]:
    return [on_rank(schedule, kind) for schedule in schedules for kind in KINDS]


def test_ranks_hold_the_bits_of_the_schedule(ranks):
    cases = SUMS + HALVES
    schedules = [make_schedule(unit(name), method, collective) for name, method, collective in cases]
    results = ranks(4).run(every_schedule, schedules)
    places = [(case, schedule, k) for case, schedule in zip(cases, schedules, strict=True) for k in KINDS]
    for place, (case, schedule, kind) in enumerate(places):
        for i, n in enumerate(SIZES):
            everyone = [given(rank, n, kind) for rank in range(4)]
            want = by_hand(schedule, everyone, equal_chunks(n, schedule.chunks))
            total = sum((given(rank, n, kind) for rank in range(1, 4)), given(0, n, kind))
            for rank in range(4):
                for got in results[rank][place][3 * i : 3 * i + 3]:
                    assert torch.equal(got, want[rank])
                    assert case not in SUMS or torch.equal(got, want[0]), "ranks differ"
                    assert case not in SUMS or kind != "int64" or torch.equal(got, total)


# The second node owns nothing, the last less than it has chunks.
SLICES = [600, 0, 401, 1]


def scattered(schedule: Schedule) -> Tensor:
    ranges = owned_chunks(schedule, SLICES)
    results = []
    for run in (execute, execute_in_batches):
        data = given(torch.distributed.get_rank(), sum(SLICES), "int64")
        run(schedule, data, ranges=ranges)
        results.append(data.split(SLICES)[torch.distributed.get_rank()])
    assert torch.equal(*results)
    return results[0]


def test_owners_of_uneven_slices_get_their_sums(ranks):
    total = sum(given(rank, sum(SLICES), "int64") for rank in range(4))
    for method in ("two-way-ring", "multitree", "2d-ring"):
        half = make_schedule(unit("mesh:2x2"), method).half("reduce-scatter")
        found = ranks(4).run(scattered, half)
        assert all(map(torch.equal, found, total.split(SLICES))), method


def fails(schedule: Schedule) -> str:
    """Rank 3 does not take part: the others must raise the error of the group, not wait forever."""
    group = torch.distributed.new_group(timeout=timedelta(seconds=2))
    torch.distributed.barrier(group)
    if torch.distributed.get_rank() == 3:
        return "absent"
    try:
        execute(schedule, torch.ones(8), group)
    except RuntimeError as error:
        return f"raised {type(error).__name__}"
    return "finished"


def test_an_absent_rank_ends_the_others(ranks):
    pool = ranks(4)
    ended = pool.run(fails, make_schedule(unit("full:4"), "multitree"), timeout=60)
    assert ended == [*3 * ["raised RuntimeError"], "absent"]
    pool.close()
