"""Predicts and measures all-reduces on a network: gloo's own, and schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor

from caat.topology.choose import pieces
from caat.topology.execute import execute
from caat.topology.graph import Topology
from caat.topology.methods import make_schedule, methods_of
from caat.topology.read import topology
from caat.topology.rings import ring_of_ranks
from caat.topology.schedule import Schedule
from caat.topology.schedule_file import read_schedule
from caat.topology.simulate import seconds
from conf.bench import BenchCollectivesConfig
from conf.checks import require
from conf.units import delay_seconds, rate_bytes
from eval.speed.measure import slowest
from eval.speed.timing import take_turns

GLOO = "gloo"
# gloo cuts a chunk into segments of at most this many bytes, and into two at least.
GLOO_SEGMENT = 2**20


@dataclass(frozen=True)
class AllReduce:
    """One way to all-reduce: its schedule, the pieces of a chunk and the simulated seconds."""

    mode: str
    schedule: Schedule
    pieces: int
    predicted: float

    def run(self, data: Tensor) -> None:
        if self.mode == GLOO:
            dist.all_reduce(data)
        else:
            execute(self.schedule, data, pieces=self.pieces)


def network_of(config: BenchCollectivesConfig) -> Topology:
    """Return the network. Raise ``ValueError`` if it cannot be read."""
    return topology(config.topology, rate_bytes(config.rate), delay_seconds(config.delay))


def all_reduces(config: BenchCollectivesConfig, network: Topology, *, show: bool = False) -> list[AllReduce]:
    """Return gloo's all-reduce, then the schedules. Raise ``ValueError`` for one that does not fit.

    ``show`` the progress of the simulation.
    """
    size = 4 * config.numbers
    given = _given(config, network)

    def scheduled(mode: str, schedule: Schedule, count: int | None = config.pieces) -> AllReduce:
        count = count or pieces(schedule, size)
        return AllReduce(mode, schedule, count, seconds(schedule, network, size, count))

    segments = max(2, ceil(size / GLOO_SEGMENT / network.nodes))
    found = [scheduled(GLOO, ring_of_ranks(network), segments)]
    methods = methods_of(network) if config.method is None else [config.method]
    for method in track(methods, "simulating", transient=True, disable=not show):
        found.append(scheduled(method, make_schedule(network, method)))
    return found + [scheduled(name, schedule) for name, schedule in given.items()]


def _given(config: BenchCollectivesConfig, network: Topology) -> dict[str, Schedule]:
    """Return the schedule in the file, by its name, if there is one."""
    if config.schedule is None or not (path := Path(config.schedule).expanduser()).exists():
        return {}
    schedule = read_schedule(path)
    require(
        schedule.nodes == network.nodes,
        f"schedule={config.schedule} is for {schedule.nodes} nodes, but topology={network.name} has "
        f"{network.nodes}",
    )
    return {config.schedule: schedule}


def collective_rows(config: BenchCollectivesConfig) -> list[dict]:
    """Return the seconds of the slowest rank, and their spread, for each of :func:`all_reduces`. Collective.

    Raises ``ArithmeticError`` if a rank gets another result than the exact sum.
    """
    sums = _Sums(config.numbers)
    runs: dict[str, Callable] = {
        way.mode: partial(way.run, sums.data) for way in all_reduces(config, network_of(config))
    }
    times = take_turns(
        runs, config.rounds, warm_up=1, before=sums.reset, show=dist.get_rank() == 0, after=sums.check
    )
    slow = {mode: slowest(own) for mode, own in times.items()}
    return [
        {"mode": mode, "seconds": own.median / 1e3, "spread": own.spread / 1e3} for mode, own in slow.items()
    ]


class _Sums:
    """A buffer to sum. It holds small whole numbers, which float32 adds exactly in any order."""

    def __init__(self, numbers: int) -> None:
        self.given = _whole_numbers(dist.get_rank(), numbers)
        self.want = torch.zeros(numbers)
        for rank in range(dist.get_world_size()):
            self.want += _whole_numbers(rank, numbers)
        self.data = torch.empty_like(self.given)

    def reset(self) -> None:
        self.data.copy_(self.given)
        dist.barrier()

    def check(self, mode: str) -> None:
        if not torch.equal(self.data, self.want):
            raise ArithmeticError(f"rank {dist.get_rank()}: {mode} does not give the exact sum")


def _whole_numbers(rank: int, numbers: int) -> Tensor:
    """Return whole numbers between -8 and 8 + ``rank``, different ones on each rank."""
    return torch.arange(numbers).mul_(2 * rank + 3).remainder_(17 + rank).sub_(8).float()
