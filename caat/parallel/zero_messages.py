"""How DeepSpeed's messages between replicas travel: by the backend, by slices, or through a codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.exchange import Exchange, Finished
from caat.parallel.reduction import Count, Reduction
from caat.parallel.weights import WeightGather
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
        self.gradients = Reduction(exchange, settings, count, seed)
        self.weights = WeightGather(exchange, settings.weights_codec, count)
        gloo = exchange.ways is not None
        # Whether the backend's own reductions and gathers are replaced.
        self.reduces = gloo or not self.gradients.exact
        self.gathers = gloo or not self.weights.exact
        # Returns who owns which numbers of an all-reduced message of a length; None: every rank needs all.
        self.owners: Callable[[int], Ranges | None] = lambda n: None
        # Returns the ranges of a reduce-scattered message of a length that hold no gradients; None: unknown.
        self.padding: Callable[[int], list[tuple[int, int]] | None] = lambda n: []

    def reduced(self, name: str, arguments: Sequence[Any]) -> dist.Work | None:
        """Reduce a message of gradients; return None to leave it to the backend."""
        if not self.reduces:
            return None
        if name == "allreduce" and arguments[1].reduceOp == dist.ReduceOp.SUM:
            (message,) = arguments[0]
            return self._all_reduced(message.view(-1)) if message.is_floating_point() else None
        if name in REDUCE_SCATTERS:
            out, message = arguments[0], arguments[1].view(-1)
            padding = self.padding(len(message))
            if padding is None:
                return None
            # It may hold any numbers, and a codec mixes them with others.
            for start, size in padding:
                message[start : start + size] = 0
            total = self.gradients.to_owners(message.chunk(self.gradients.exchange.size))
            # Only now: ``out`` may be a part of the message.
            out.view(-1).copy_(total)
            return Finished()
        return None

    def gathered(self, name: str, arguments: Sequence[Any]) -> dist.Work | None:
        """Gather updated weights; return None to leave it to the backend."""
        if self.gathers and name in ALL_GATHERS:
            return self.weights.start(arguments[0], arguments[1])
        return None

    def _all_reduced(self, flat: Tensor) -> dist.Work | None:
        ranges = self.owners(len(flat))
        if ranges is not None:
            total = self.gradients.to_owners([_take(flat, owned) for owned in ranges])
            _put(flat, ranges[self.gradients.exchange.rank], total)
            return Finished()
        if self.gradients.exact:
            # All ranks need the sum, so slices would not save anything.
            return None
        self.gradients.everywhere(flat)
        return Finished()


def _take(flat: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    pieces = [flat[start : start + size] for start, size in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else flat[:0]


@torch.no_grad()
def _put(flat: Tensor, ranges: Sequence[tuple[int, int]], values: Tensor) -> None:
    for (start, size), piece in zip(ranges, values.split([size for _, size in ranges]), strict=True):
        flat[start : start + size] = piece
