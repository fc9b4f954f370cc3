"""Counted collectives over one axis of the mesh."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.distributed as dist
from torch import Tensor

from caat.parallel.background import Background, Wait, nothing
from caat.parallel.ledger import Ledger
from caat.parallel.sums import SumOptions, needs_slices, sum_by_slices
from caat.parallel.wire import from_wire, to_wire

# The phase of an optimizer step in which a message is sent. Messages about gradients count as backward.
Direction = Literal["forward", "backward", "step"]


class Collectives:
    """Collectives over the processes of one axis; with one process nothing is sent or counted.

    Purposes in :attr:`ledger` on the tensor-parallel axis: ``sync`` (partial synchronisation inside the
    layers), ``embedding``, ``loss``, ``replicated`` (gradients of replicated weights), ``norm`` (of the
    gradient), ``sampling``.
    """

    def __init__(
        self, processes: int, group: dist.ProcessGroup | None, options: SumOptions | None = None
    ) -> None:
        self.processes = processes
        self.group = group
        self.options = options or SumOptions()
        self.ledger = Ledger()
        self._background = Background()
        # Waits for the latest sum started in the background.
        self._arrived: Wait = nothing

    def all_reduce(
        self,
        message: Tensor,
        direction: Direction,
        purpose: str,
        op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    ) -> Tensor:
        """Sum (or ``op``) the contiguous ``message`` over the processes, in place, and return it."""
        if self.processes > 1 and message.numel() > 0:
            self._arrived()
            dist.all_reduce(message, op, group=self.group)
            self.ledger.count(self._sent_bytes(message), direction, purpose)
        return message

    def _sent_bytes(self, message: Tensor) -> int:
        """Return the bytes to count for the all-reduce of ``message``."""
        return message.nbytes

    def all_gather(self, message: Tensor, direction: Direction, purpose: str) -> Tensor:
        """Gather the contiguous ``message`` of every process, concatenated in rank order along dim 0."""
        if self.processes == 1:
            return message
        self._arrived()
        gathered = message.new_empty(self.processes * len(message), *message.shape[1:])
        dist.all_gather(list(gathered.split(len(message))), message, group=self.group)
        self.ledger.count(message.nbytes, direction, purpose)
        return gathered

    def start_sum(self, x: Tensor, direction: Direction, purpose: str) -> Wait:
        """Start summing the contiguous activations ``x`` in place, according to :attr:`options`.

        The all-reduce is in flight when this returns; the caller computes something else and then calls the
        returned function, which waits and writes the sum to ``x``. Until then ``x`` must not be touched.

        Processes match messages by their order. Direct all-reduces are issued in program order, so several
        may be in flight. A sum by slices is issued by a background thread, so every later collective first
        waits for it: otherwise the order could differ between processes.
        """
        if self.processes == 1 or x.numel() == 0:
            return nothing
        self._arrived()
        # Bypass x's version counter. If it changes after a view of x was taken, autograd copies the gradient
        # when it passes back through the view, possibly before the gradient's own sum has arrived.
        x = x.data
        message = to_wire(x, self.options.wire_dtype)
        self.ledger.count(message.nbytes, direction, purpose)
        sum_dtype = self.options.sum_dtype
        if needs_slices(message, self.processes, sum_dtype):
            add_up = partial(sum_by_slices, group=self.group, sum_dtype=sum_dtype)
            arrived = self._arrived = self._background.run(add_up, message)
        else:
            work = dist.all_reduce(message, group=self.group, async_op=True)
            assert work is not None
            arrived = work.wait

        def wait() -> None:
            arrived()
            from_wire(message, x)

        if self.options.overlap:
            return wait
        wait()
        return nothing
