"""What a message costs a process besides its time on the wire."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from caat.planning.prediction import MessageCost
from eval.speed.measure import slowest
from eval.speed.timing import Times, take_turns

SMALL, LARGE = 4, 2**20
# Messages of one turn, products between two of them, and turns.
MESSAGES, PRODUCTS, ROUNDS = 6, 4, 7


class Messages(NamedTuple):
    """The one-way ``delay`` of a message alone, in seconds, and the ``cost`` that it has during training."""

    delay: float
    cost: MessageCost

    @staticmethod
    def of(rows: Sequence[dict]) -> Messages:
        """Return what :meth:`figures` have kept in ``rows``."""
        first = rows[0]
        rate = first["core_bytes_per_second"]
        return Messages(first["delay_seconds"], MessageCost(first["message_seconds"], rate or math.inf))

    def figures(self) -> dict[str, float | None]:
        """Return the figures for JSON, which has no infinity."""
        rate = self.cost.rate if math.isfinite(self.cost.rate) else None
        return {
            "delay_seconds": self.delay,
            "message_seconds": self.cost.seconds,
            "core_bytes_per_second": rate,
        }


def measure_messages(device: torch.device) -> Messages:
    """Measure what messages between products of matrices cost, as training has them. Collective.

    The seconds are those that an all-reduce of one number adds to the products and to the same message alone:
    the mean of one that is waited for, where the ranks also wait for each other, and one beside the products.
    The rate is that of the CPU time of larger messages, which gloo needs to copy and add; NCCL needs none.
    """
    x = torch.ones(1024, 512, device=device)
    weights = torch.ones(512, 1408, device=device)
    number = torch.zeros(SMALL // 4, device=device)

    def products() -> None:
        for _ in range(PRODUCTS):
            x @ weights

    def message() -> None:
        dist.all_reduce(number)

    def both() -> None:
        products()
        message()

    def beside() -> None:
        work = dist.all_reduce(number, async_op=True)
        assert work is not None
        products()
        work.wait()

    turns = {each.__name__: _repeated(each, device) for each in (products, message, both, beside)}
    measured = take_turns(turns, ROUNDS, before=dist.barrier, show=False)
    slow = {name: slowest(times) for name, times in measured.items()}
    alone, wire = slow["products"], slow["message"]
    longer = Times([max(pair) for pair in zip(alone.values, wire.values, strict=True)])
    # Round by round, so that a slow spell of the machine does not count as the cost of a message.
    added = (slow["both"].above(alone).above(wire), slow["beside"].above(longer))
    cost = MessageCost(
        sum(max(0.0, times.median) for times in added) / len(added) / MESSAGES / 1e3,
        _core_rate() if device.type == "cpu" else math.inf,
    )
    return Messages(wire.median / MESSAGES / 1e3 / (2 * (dist.get_world_size() - 1)), cost)


def _repeated(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(MESSAGES):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return turn


def _core_rate() -> float:
    """Return the bytes that a core sends, receives and adds per second of CPU time."""
    small, large = (_cpu_seconds(torch.zeros(size // 4)) for size in (SMALL, LARGE))
    cpu = slowest(Times([max(0.0, large - small)])).median
    # A ring sends 2 (P - 1) / P of the message.
    processes = dist.get_world_size()
    return 2 * (processes - 1) / processes * (LARGE - SMALL) / cpu if cpu else math.inf


def _cpu_seconds(message: Tensor) -> float:
    """Return the CPU time of an all-reduce, with that of gloo's threads and of the kernel for it."""
    dist.all_reduce(message)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(2 * MESSAGES):
        dist.all_reduce(message)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent / (2 * MESSAGES)
