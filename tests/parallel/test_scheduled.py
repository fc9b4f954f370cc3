"""Sums and gathers along schedules on real ranks, against the schedule in one process, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from caat.parallel.exchange import Exchange
from caat.parallel.ledger import Ledger
from caat.parallel.mesh import Mesh
from caat.parallel.scheduled import Scheduled, ScheduledReduction
from caat.topology.chunks import equal_chunks, owned_chunks
from caat.topology.methods import make_schedule
from caat.topology.schedule import Schedule
from caat.topology.schedule_file import write_schedule
from caat.topology.settings import Schedules
from conf.schedule import ScheduleSpec
from tests.topology.by_hand import by_hand, sent_by
from tests.topology.networks import unit

RANKS = 4
# Nodes of a line send different amounts, and its trees add in different orders.
SCHEDULES = [("mesh:4", "multitree"), ("mesh:2x2", "2d-ring"), ("full:4", "ring")]
SLICES = [(700, 0, 130, 171), (250, 250, 250, 250), (0, 0, 2, 0)]
DTYPES = (torch.float32, torch.bfloat16)


def given(rank: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(n, generator=torch.Generator().manual_seed(7 + rank)) ** 3).to(dtype)


def schedules_of(path: str) -> Schedules:
    found = Schedules.of(ScheduleSpec("data_sync", "replicas", path), RANKS)
    assert found is not None
    return found


def travelled(path: str) -> list:
    """For each type and slices: own slice, sum everywhere and gathered rows, and the bytes of each."""
    rank, ledger, found = dist.get_rank(), Ledger(), []
    exchange = Exchange(dist.group.WORLD)
    scheduled = Scheduled(schedules_of(path), exchange.group)
    reduction = ScheduledReduction(
        exchange, schedules_of(path), lambda sent, purpose: ledger.count(sent, "backward", purpose)
    )
    for dtype in DTYPES:
        for slices in SLICES:
            whole = given(rank, sum(slices), dtype)
            before = whole.clone()
            own = reduction.to_owners(whole.split(slices))
            assert torch.equal(whole, before), "the gradients of others are still needed"
            to_owners = ledger.totals("gradients")["bytes_gradients"]
            ledger.reset()
            reduction.everywhere(whole)
            everywhere = ledger.totals("gradients")["bytes_gradients"]
            ledger.reset()
            rows = torch.zeros(RANKS, len(whole), dtype=dtype)
            rows[rank] = given(rank, len(whole), dtype)
            gather = scheduled.all_gather(rows)
            found.append((own, to_owners, whole, everywhere, rows, gather))
    return found


@pytest.fixture(scope="module", params=SCHEDULES, ids=str)
def case(request, tmp_path_factory) -> tuple[Schedule, Path]:
    schedule = make_schedule(unit(request.param[0]), request.param[1])
    path = tmp_path_factory.mktemp("schedule") / "schedule.json"
    write_schedule(schedule, path)
    return schedule, path


def test_bits_and_bytes_are_those_of_the_schedule(ranks, case):
    schedule, path = case
    by_rank = ranks(RANKS).run(travelled, str(path))
    places = [(dtype, slices) for dtype in DTYPES for slices in SLICES]
    sums, copies = schedule.half("reduce-scatter"), schedule.half("all-gather")
    for place, (dtype, slices) in enumerate(places):
        n, size = sum(slices), dtype.itemsize
        everyone = [given(rank, n, dtype) for rank in range(RANKS)]
        cut = owned_chunks(schedule, slices)
        of_owners = by_hand(sums, everyone, cut)
        equal = equal_chunks(n, schedule.chunks)
        (whole, *others) = by_hand(schedule, everyone, equal)
        assert all(torch.equal(whole, each) for each in others)
        for rank, found in enumerate(by_rank):
            own, to_owners, summed, everywhere, rows, gather = found[place]
            assert torch.equal(own, of_owners[rank].split(slices)[rank]), (dtype, slices)
            assert torch.equal(summed, whole), (dtype, slices)
            assert torch.equal(rows, torch.stack(everyone)), (dtype, slices)
            assert to_owners == size * sent_by(sums, rank, cut)
            assert everywhere == size * sent_by(schedule, rank, equal)
            assert gather == size * sent_by(copies, rank, owned_chunks(schedule, [n] * RANKS))


def momenta(route: ScheduleSpec) -> tuple[torch.Tensor, int, torch.Tensor]:
    """A message of momentum over four islands, next to their loss."""
    islands = Mesh.create(1, 1, islands=RANKS, island_route=route).islands
    islands.all_reduce_large(message := given(dist.get_rank(), 1001, torch.float32), "step", "momentum")
    loss = islands.all_reduce(torch.ones(1), "step", "loss")
    return message, islands.ledger.totals("momentum")["bytes_momentum"], loss


def test_momentum_of_islands_travels_along_the_schedule(ranks, case):
    schedule, path = case
    everyone = [given(rank, 1001, torch.float32) for rank in range(RANKS)]
    equal = equal_chunks(1001, schedule.chunks)
    want = by_hand(schedule, everyone, equal)[0]
    route = ScheduleSpec("islands", "islands", str(path))
    for rank, (got, sent, loss) in enumerate(ranks(RANKS).run(momenta, route)):
        assert torch.equal(got, want) and float(loss) == RANKS
        assert sent == 4 * sent_by(schedule, rank, equal)
