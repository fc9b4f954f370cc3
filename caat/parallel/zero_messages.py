"""How DeepSpeed's messages between replicas travel: by the backend, slices, a codec or a schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from caat.compression.codec import Shapes
from caat.parallel.exchange import Exchange, Finished
from caat.parallel.reduction import Count, Reduction
from caat.parallel.scheduled import ScheduledReduction
from caat.parallel.weights import WeightGather
from caat.topology.settings import Schedules
from conf.data_sync import DataSyncConfig

# Names of torch before 2.13 and from 2.13 on.
REDUCE_SCATTERS = ("_reduce_scatter_base", "reduce_scatter_single")
ALL_GATHERS = ("_allgather_base", "all_gather_single")

# Ranges (start, length) of a message, by owner.
Ranges = list[list[tuple[int, int]]]


class ZeroMessages:
    """Sends DeepSpeed's gradients and updated weights where that takes fewer bytes or less time.

    Without a codec, gradients go to their owners by slices if the backend is gloo, whose reduce-scatter sends
    as much as an all-reduce. NCCL's collectives are left alone.
    """

    def __init__(self, exchange: Exchange, settings: DataSyncConfig, count: Count, seed: int) -> None:
        self.settings = settings
        self.schedules = Schedules.of(settings.route, exchange.size)
        self.gradients = (
            ScheduledReduction(exchange, self.schedules, count)
            if self.schedules
            else Reduction(exchange, settings, count, seed)
        )
        self.weights = WeightGather(exchange, settings.weights_codec, count, self.schedules)
        other_ways = exchange.ways is not None or self.schedules is not None
        # Whether the backend's own reductions and gathers are replaced.
        self.reduces = other_ways or not self.gradients.exact
        self.gathers = other_ways or not self.weights.exact
        # Returns who owns which numbers of an all-reduced message of a length; None: every rank needs all.
        self.owners: Callable[[int], Ranges | None] = lambda n: None
        # Returns the shapes of the parameters in a message of a length; (): unknown. A message that is
        # reduce-scattered holds the first part of each parameter, then the second; all parts are padded.
        self.shapes: Callable[[int], Shapes] = lambda n: ()

    def reduced(self, name: str, arguments: Sequence[Any]) -> dist.Work | None:
        """Reduce a message of gradients; return None to leave it to the backend."""
        if not self.reduces:
            return None
        if name == "allreduce" and arguments[1].reduceOp == dist.ReduceOp.SUM:
            (message,) = arguments[0]
            return self._all_reduced(message.view(-1)) if message.is_floating_point() else None
        if name in REDUCE_SCATTERS:
            return self._reduce_scattered(arguments[0].view(-1), arguments[1].view(-1))
        return None

    def gathered(self, name: str, arguments: Sequence[Any]) -> dist.Work | None:
        """Gather updated weights; return None to leave it to the backend."""
        if self.gathers and name in ALL_GATHERS:
            return self.weights.start(arguments[0], arguments[1])
        return None

    def _all_reduced(self, flat: Tensor) -> dist.Work | None:
        # A linear codec gives all ranks all sums anyway, and encodes whole parameters better than parts.
        ranges = None if self.gradients.codec.way == "linear" else self.owners(len(flat))
        if ranges is not None:
            total = self.gradients.to_owners([_take(flat, owned) for owned in ranges])
            _put(flat, ranges[self.gradients.exchange.rank], total)
            return Finished()
        if self.gradients.exact and self.schedules is None:
            # All ranks need the sum, so slices would not save anything.
            return None
        self.gradients.everywhere(flat, self.shapes(len(flat)))
        return Finished()

    def _reduce_scattered(self, out: Tensor, message: Tensor) -> dist.Work | None:
        shapes, exchange = self.shapes(len(message)), self.gradients.exchange
        known = shapes or self.gradients.exact
        assert known, f"{len(message)} gradients are not those of whole parameters, and would go uncompressed"
        if self.gradients.codec.way == "linear":
            parameters = _joined(message, shapes, exchange.size)
            self.gradients.everywhere(parameters, shapes)
            out.copy_(_part(parameters, shapes, exchange.rank, exchange.size))
            return Finished()
        # The padding may hold any numbers, which a codec would mix with others.
        for start, size in _padding(shapes, exchange.size):
            message[start : start + size] = 0
        total = self.gradients.to_owners(message.chunk(exchange.size))
        # Only now: ``out`` may be a part of the message.
        out.copy_(total)
        return Finished()


def _padding(shapes: Shapes, ranks: int) -> list[tuple[int, int]]:
    """Return the ranges (start, length) of a reduce-scattered message that hold no gradients."""
    found, at = [], 0
    for owner in range(ranks):
        for size in map(prod, shapes):
            part = -(-size // ranks)
            real = min(part, max(0, size - owner * part))
            if real < part:
                found.append((at + real, part - real))
            at += part
    return found


def _joined(message: Tensor, shapes: Shapes, ranks: int) -> Tensor:
    """Return the parameters in a reduce-scattered message, flat, one after the other."""
    sizes = [prod(shape) for shape in shapes]
    parts = message.view(ranks, -1).split([-(-size // ranks) for size in sizes], 1)
    return torch.cat([part.reshape(-1)[:size] for part, size in zip(parts, sizes, strict=True)])


def _part(parameters: Tensor, shapes: Shapes, rank: int, ranks: int) -> Tensor:
    """Return the parts of flat ``parameters`` that go to ``rank``, padded with zeros."""
    found = []
    for parameter in parameters.split([prod(shape) for shape in shapes]):
        part = -(-len(parameter) // ranks)
        own = parameter[rank * part : (rank + 1) * part]
        found.append(F.pad(own, (0, part - len(own))))
    return torch.cat(found)


def _take(flat: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    pieces = [flat[start : start + size] for start, size in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else flat[:0]


@torch.no_grad()
def _put(flat: Tensor, ranges: Sequence[tuple[int, int]], values: Tensor) -> None:
    for (start, size), piece in zip(ranges, values.split([size for _, size in ranges]), strict=True):
        flat[start : start + size] = piece
