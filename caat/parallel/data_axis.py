"""The data-parallel axis: messages between replicas, ours and DeepSpeed's, counted in one ledger."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from caat.parallel.collectives import Collectives, Direction
from caat.parallel.counted_group import new_counted_group
from caat.parallel.exchange import Exchange
from caat.parallel.ring import ring_bytes
from caat.parallel.timeout import GROUP_TIMEOUT
from caat.parallel.zero_messages import ZeroMessages
from conf.data_sync import DataSyncConfig

# Purposes of the messages of a training step. gradients: their reduction; weights: ZeRO's gathers and
# broadcasts; loss: its mean; control: single numbers on which the replicas agree, such as the gradient norm.
PURPOSES = ("gradients", "weights", "loss", "control")

Value = TypeVar("Value")


class DataAxis(Collectives):
    """Collectives over the D replicas that hold the same shards.

    DeepSpeed sends its messages through :attr:`process_group`, and :attr:`zero` decides how they travel;
    without it, the backend sends them. All messages count with the bytes that this rank sends. The engine
    sets by :meth:`during` to which phase of a step they belong.
    """

    def __init__(self, replicas: int = 1, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(replicas, group)
        self.process_group = group
        self.zero: ZeroMessages | None = None
        self._direction: Direction = "step"

    @staticmethod
    def create(
        columns: Sequence[list[int]],
        groups: Sequence[dist.ProcessGroup],
        mine: int,
        settings: DataSyncConfig,
        seed: int,
    ) -> DataAxis:
        """Create the axis of ``groups[mine]``, with ranks ``columns[mine]``. Collective over the world."""
        axis = DataAxis(len(columns[mine]), groups[mine])
        if axis.processes > 1:
            gloo = dist.get_backend(groups[mine]) == "gloo"
            ways = [[dist.new_group(ranks, GROUP_TIMEOUT) for _ in range(2)] for ranks in columns if gloo]
            exchange = Exchange(groups[mine], ways[mine] if gloo else None)
            axis.zero = ZeroMessages(exchange, settings, axis._count, seed)
            pairs = zip(columns, groups, strict=True)
            axis.process_group = [new_counted_group(*pair, axis._handle) for pair in pairs][mine]
        return axis

    def start_step(self, step: int) -> None:
        """Reset the counts, and draw the random numbers of ``step`` in codecs."""
        self.ledger.reset()
        if self.zero:
            self.zero.gradients.start_step(step)

    @contextmanager
    def during(self, direction: Direction) -> Iterator[None]:
        """Assign DeepSpeed's messages in this context to ``direction``; outside of it, to ``step``."""
        self._direction = direction
        if direction == "backward" and self.zero:
            self.zero.gradients.begin()
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
        self.ledger.count(len(pickle.dumps(value)) * (self.processes - 1), "step", "results")
        return values

    def _sent_bytes(self, message: Tensor) -> int:
        return ring_bytes(message.nbytes, self.processes)

    def _handle(self, name: str, arguments: tuple[Any, ...], sent: int) -> dist.Work | None:
        """Send a message of DeepSpeed, or leave it to the backend and count the bytes that it sends."""
        work, purpose = None, "control"
        if "gather" in name or name == "broadcast":
            purpose = "weights"
            # In other phases, stage 3 gathers weights while it computes, which the backend does well.
            if self._direction == "step" and self.zero:
                work = self.zero.gathered(name, arguments)
        elif self._direction == "backward":
            purpose = "gradients"
            work = self.zero.reduced(name, arguments) if self.zero else None
        # Outside backward, DeepSpeed reduces only single numbers: the norm, and whether it is finite.
        if work is None:
            self._count(sent, purpose)
        return work

    def _count(self, sent: int, purpose: str) -> None:
        self.ledger.count(sent, self._direction, purpose)
