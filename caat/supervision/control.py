"""Small collectives with which all ranks make decisions, always over gloo, whatever the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from caat.parallel.timeout import GROUP_TIMEOUT


class Control:
    """A group of all ranks, or a single process.

    Creating it and calling its methods is collective: every rank does so, from one thread.
    """

    def __init__(self) -> None:
        self.world, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.group = dist.new_group(timeout=GROUP_TIMEOUT, backend="gloo") if self.world > 1 else None

    def maximum(self, *values: int) -> list[int]:
        """Return the maximum over all ranks of each value."""
        if self.group is None:
            return list(values)
        message = torch.tensor(values)
        dist.all_reduce(message, dist.ReduceOp.MAX, group=self.group)
        return message.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of every rank, in rank order, on all ranks. Values should be small."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values
