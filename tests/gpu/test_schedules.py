"""Schedules on NCCL, which needs a GPU for each rank: the bits of the schedule in one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from caat.topology.chunks import equal_chunks
from caat.topology.execute import execute
from caat.topology.methods import METHODS, make_schedule
from tests.topology.by_hand import by_hand
from tests.topology.networks import unit

# The second leaves some chunks empty.
SIZES = (100_003, 3)
NAMES = [name for name in METHODS if name != "2d-ring"]


def given(rank: int, n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(rank))


def on_rank(rank: int, world: int, folder: Path) -> None:
    torch.cuda.set_device(rank)
    store = dist.FileStore(os.fspath(folder / "store"), world)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=world)
    results = []
    for method in NAMES:
        for n in SIZES:
            data = given(rank, n).cuda()
            execute(make_schedule(unit(f"full:{world}"), method), data)
            results.append(data.cpu())
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_hold_the_bits_of_the_schedule(tmp_path):
    world = min(4, torch.cuda.device_count())
    if world < 2:
        pytest.skip("NCCL needs a GPU for each of two ranks, and this machine has one")
    torch.multiprocessing.spawn(on_rank, (world, tmp_path), world)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for place, (method, n) in enumerate((method, n) for method in NAMES for n in SIZES):
        schedule = make_schedule(unit(f"full:{world}"), method)
        everyone = [given(rank, n) for rank in range(world)]
        want = by_hand(schedule, everyone, equal_chunks(n, schedule.chunks))
        for rank in range(world):
            assert torch.equal(results[rank][place], want[rank]), (method, n, rank)
