"""Collectives along schedules of :mod:`caat.topology`, in place of those of the backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from caat.compression.codec import Shapes
from caat.parallel.exchange import Exchange
from caat.parallel.reduction import Count, Reduction
from caat.topology.execute import execute
from caat.topology.settings import Schedules
from conf.data_sync import DataSyncConfig


class Scheduled:
    """Collectives between the ranks of ``group``. Each returns the bytes that this rank sends."""

    def __init__(self, schedules: Schedules, group: dist.ProcessGroup) -> None:
        self.schedules, self.group = schedules, group
        self.rank = dist.get_rank(group)
        self._on_host = dist.get_backend(group) == "gloo"

    def all_reduce(self, flat: Tensor) -> int:
        """Replace ``flat`` [n] by its sum over the ranks, in its own type."""
        return self._run("all-reduce", flat, len(flat))

    def reduce_scatter(self, slices: Sequence[Tensor]) -> tuple[Tensor, int]:
        """Return the sum of the slice that this rank owns, in its own type; ``slices`` [n_r] for owner r."""
        flat, sizes = torch.cat(list(slices)), [len(part) for part in slices]
        sent = self._run("reduce-scatter", flat, sizes)
        return flat.split(sizes)[self.rank], sent

    def all_gather(self, rows: Tensor) -> int:
        """Fill ``rows`` [D, n], contiguous, of which every rank gives its own."""
        return self._run("all-gather", rows.view(-1), [rows.shape[1]] * len(rows))

    def _run(self, collective: str, flat: Tensor, numbers: int | Sequence[int]) -> int:
        if not flat.numel():
            return 0
        way = self.schedules.way(collective, numbers, flat.itemsize)
        # gloo sends and receives only tensors in host memory.
        data = flat.cpu() if self._on_host else flat
        execute(way.schedule, data, self.group, way.pieces, way.ranges)
        if data is not flat:
            flat.copy_(data)
        return way.sent_bytes(self.rank)


class ScheduledReduction(Reduction):
    """Exact sums along schedules. Each addition is rounded to the type of the messages."""

    def __init__(self, exchange: Exchange, schedules: Schedules, count: Count) -> None:
        super().__init__(exchange, DataSyncConfig(), count)
        self._scheduled = Scheduled(schedules, exchange.group)

    @torch.no_grad()
    def to_owners(self, slices: Sequence[Tensor]) -> Tensor:
        with self.seconds.timed("wire"):
            total, sent = self._scheduled.reduce_scatter(slices)
        self.count(sent, "gradients")
        return total

    @torch.no_grad()
    def everywhere(self, flat: Tensor, shapes: Shapes = ()) -> None:
        with self.seconds.timed("wire"):
            sent = self._scheduled.all_reduce(flat)
        self.count(sent, "gradients")
