"""Collectives of one axis of the mesh, each of them counted."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.distributed as dist
from torch import Tensor

from caat.parallel.background import Background, Wait, nothing
from caat.parallel.ledger import Ledger
from caat.parallel.sums import SumOptions, needs_slices, sum_by_slices
from caat.parallel.wire import from_wire, to_wire

# Where in an optimizer step a message is sent.
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
            self.ledger.count(message.nbytes, direction, purpose)
        return message

    def all_gather(self, message: Tensor, direction: Direction, purpose: str) -> Tensor:
        """The contiguous ``message`` of every process, in the order of their ranks, side by side in dim 0."""
        if self.processes == 1:
            return message
        self._arrived()
        gathered = message.new_empty(self.processes * len(message), *message.shape[1:])
        dist.all_gather(list(gathered.split(len(message))), message, group=self.group)
        self.ledger.count(message.nbytes, direction, purpose)
        return gathered

    def start_sum(self, x: Tensor, direction: Direction, purpose: str) -> Wait:
        """Start to sum the contiguous activations ``x`` in place, as :attr:`options` say.

        ``x`` must be left alone until the returned function has been called. Another collective that starts
        meanwhile waits for it where another thread makes the sum: processes match messages by their order.
        """
        if self.processes == 1 or x.numel() == 0:
            return nothing
        self._arrived()
        # Without x's version counter: if that moves after a view of x was made, autograd copies the gradient
        # on its way back through the view, and a copy can be taken before the gradient's own sum is there.
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
