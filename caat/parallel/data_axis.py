"""The data-parallel axis: messages between replicas, ours and DeepSpeed's, counted in one ledger."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from caat.parallel.collectives import Collectives, Direction
from caat.parallel.counted_group import new_counted_group

# Purposes of the messages of a training step. gradients: their reduction; weights: ZeRO's gathers and
# broadcasts; loss: its mean; control: single numbers on which the replicas agree, such as the gradient norm.
PURPOSES = ("gradients", "weights", "loss", "control")

Value = TypeVar("Value")


class DataAxis(Collectives):
    """Collectives over the D replicas that hold the same shards.

    DeepSpeed sends its messages through :attr:`process_group`, which forwards them to the plain group. They
    count with their full size in bytes, an all-gather with the size of its result. The engine sets by
    :meth:`during` to which phase of a step they belong.
    """

    def __init__(self, replicas: int = 1, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(replicas, group)
        self.process_group = group
        self._direction: Direction = "step"

    @staticmethod
    def create(columns: Sequence[list[int]], groups: Sequence[dist.ProcessGroup], mine: int) -> DataAxis:
        """Create the axis of ``groups[mine]``, with ranks ``columns[mine]``. Collective over the world."""
        axis = DataAxis(len(columns[mine]), groups[mine])
        if axis.processes > 1:
            pairs = zip(columns, groups, strict=True)
            axis.process_group = [new_counted_group(*pair, axis._count) for pair in pairs][mine]
        return axis

    @contextmanager
    def during(self, direction: Direction) -> Iterator[None]:
        """Count DeepSpeed's messages in this context under ``direction``; outside of it, under ``step``."""
        self._direction = direction
        try:
            yield
        finally:
            self._direction = "step"

    def gather_objects(self, value: Value) -> list[Value]:
        """Return the ``value`` of every replica, in rank order. Sent pickled; the purpose is ``results``."""
        if self.processes == 1:
            return [value]
        values = [value] * self.processes
        dist.all_gather_object(values, value, group=self.group)
        self.ledger.count(len(pickle.dumps(value)), "step", "results")
        return values

    def _count(self, collective: str, message: list[Tensor]) -> None:
        if "gather" in collective or collective == "broadcast":
            purpose = "weights"
        else:
            # Outside backward, DeepSpeed reduces only single numbers: the norm, and whether it is finite.
            purpose = "gradients" if self._direction == "backward" else "control"
        self.ledger.count(sum(part.nbytes for part in message), self._direction, purpose)
