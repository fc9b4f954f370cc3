"""The data-parallel axis: our own messages between replicas and DeepSpeed's, counted in one ledger."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from caat.parallel.collectives import Collectives, Direction
from caat.parallel.counted_group import new_counted_group

# What a training step sends. gradients: their reduction; weights: ZeRO's gathers and broadcasts; loss: its
# mean; control: single numbers that the replicas agree on, such as the gradient's norm.
PURPOSES = ("gradients", "weights", "loss", "control")

Value = TypeVar("Value")


class DataAxis(Collectives):
    """Collectives over the D replicas that hold the same shards.

    DeepSpeed gets :attr:`process_group` and makes its own messages there. They are sent by the plain group,
    and counted by their whole size in bytes, an all-gather by what is gathered. The engine says by
    :meth:`during` which part of a step they belong to.
    """

    def __init__(self, replicas: int = 1, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(replicas, group)
        self.process_group = group
        self._direction: Direction = "step"

    @staticmethod
    def create(columns: Sequence[list[int]], groups: Sequence[dist.ProcessGroup], mine: int) -> DataAxis:
        """The axis of ``groups[mine]``, a group of the ranks ``columns[mine]``. Collective over the world."""
        axis = DataAxis(len(columns[mine]), groups[mine])
        if axis.processes > 1:
            pairs = zip(columns, groups, strict=True)
            axis.process_group = [new_counted_group(*pair, axis._count) for pair in pairs][mine]
        return axis

    @contextmanager
    def during(self, direction: Direction) -> Iterator[None]:
        """DeepSpeed's messages in the context belong to this part of a step; outside of it, to ``step``."""
        self._direction = direction
        try:
            yield
        finally:
            self._direction = "step"

    def gather_objects(self, value: Value) -> list[Value]:
        """The ``value`` of every replica, by rank, pickled on its way. Its purpose is ``results``."""
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
            # Between two backward passes DeepSpeed reduces numbers only: the norm, and whether it is finite.
            purpose = "gradients" if self._direction == "backward" else "control"
        self.ledger.count(sum(part.nbytes for part in message), self._direction, purpose)
