"""Every tensor-parallel collective passes through here, is counted, and can be kept for recomputation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.wire import Background, Wait, Wire

Direction = Literal["forward", "backward"]


class Collectives:
    """Collectives over the P processes that share one replica; with P = 1 nothing is sent or counted.

    ``calls`` and ``sent`` count by ``(direction, purpose)``: ``sent`` is the size in bytes of each message,
    in the type that travels. Purposes: ``sync`` (partial synchronisation inside the layers),
    ``embedding``, ``loss``, ``replicated`` (gradients of replicated weights), ``norm`` (of the gradient),
    ``sampling``.
    """

    def __init__(self, processes: int, group: dist.ProcessGroup | None, wire: Wire | None = None) -> None:
        self.processes = processes
        self.group = group
        self.wire = wire or Wire()
        self.calls: Counter[tuple[Direction, str]] = Counter()
        self.sent: Counter[tuple[Direction, str]] = Counter()
        self._recorded: list[Tensor] | None = None
        self._replayed: Iterator[Tensor] | None = None
        self._background = Background()
        # Of the last sum that another thread or stream makes.
        self._arrived: Wait = _nothing

    def all_reduce(
        self,
        message: Tensor,
        direction: Direction,
        purpose: str,
        op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    ) -> Tensor:
        """Sum (or ``op``) the contiguous ``message`` over the P processes, in place, and return it."""
        if self.processes > 1 and message.numel() > 0:
            self._arrived()
            dist.all_reduce(message, op, group=self.group)
            self._count(message, direction, purpose)
        return message

    def all_gather(self, message: Tensor, direction: Direction, purpose: str) -> Tensor:
        """The contiguous ``message`` of every process, in the order of their ranks, side by side in dim 0."""
        if self.processes == 1:
            return message
        self._arrived()
        gathered = message.new_empty(self.processes * len(message), *message.shape[1:])
        dist.all_gather(list(gathered.split(len(message))), message, group=self.group)
        self._count(message, direction, purpose)
        return gathered

    def start_sum(self, x: Tensor, direction: Direction, purpose: str) -> Wait:
        """Start to sum the contiguous activations ``x`` in place, as :attr:`wire` says.

        ``x`` must be left alone until the returned function has been called. Another collective that starts
        meanwhile waits for it where another thread makes the sum: processes match messages by their order.
        """
        if self.processes == 1 or x.numel() == 0:
            return _nothing
        self._arrived()
        # Without x's version counter: if that moves after a view of x was made, autograd copies the gradient
        # on its way back through the view, and a copy can be taken before the gradient's own sum is there.
        x = x.data
        message = self.wire.message(x)
        self._count(message, direction, purpose)
        if self.wire.by_slices(message, self.processes):
            add_up = partial(self.wire.sum_by_slices, group=self.group)
            arrived = self._arrived = self._background.run(add_up, message)
        else:
            work = dist.all_reduce(message, group=self.group, async_op=True)
            assert work is not None
            arrived = work.wait

        def wait() -> None:
            arrived()
            self.wire.restore(message, x)

        if self.wire.overlap:
            return wait
        wait()
        return _nothing

    def _count(self, message: Tensor, direction: Direction, purpose: str) -> None:
        self.calls[direction, purpose] += 1
        self.sent[direction, purpose] += message.numel() * message.element_size()

    def totals(self) -> dict[str, int]:
        """Calls and bytes since the last :meth:`reset`, by direction over all purposes."""
        return {
            f"{what}_{direction}": sum(n for (d, _), n in counter.items() if d == direction)
            for what, counter in (("calls", self.calls), ("bytes", self.sent))
            for direction in ("forward", "backward")
        }

    def reset(self) -> None:
        self.calls.clear()
        self.sent.clear()

    def keep(self, result: Tensor) -> Tensor:
        """Remember ``result`` if a checkpointed segment is being recorded; returns it."""
        if self._recorded is not None:
            self._recorded.append(result)
        return result

    def kept(self) -> Tensor | None:
        """While a segment is recomputed: the result of the same collective in the first pass."""
        return None if self._replayed is None else next(self._replayed)

    def checkpoint_contexts(self) -> tuple:
        """``context_fn`` of ``torch.utils.checkpoint``: record in forward, replay when recomputing.

        Without it every recomputation would send all its messages again.
        """
        tape: list[Tensor] = []
        return self._record(tape), self._replay(tape)

    @contextmanager
    def _record(self, tape: list[Tensor]) -> Iterator[None]:
        self._recorded = tape
        try:
            yield
        finally:
            self._recorded = None

    @contextmanager
    def _replay(self, tape: list[Tensor]) -> Iterator[None]:
        self._replayed = iter(tape)
        try:
            yield
        finally:
            self._replayed = None


def _nothing() -> None:
    pass


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, collectives: Collectives, purpose: str) -> Tensor:  # type: ignore[override]
        ctx.collectives, ctx.purpose = collectives, purpose
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        # In float32 whatever the model's type: these sums are few and small, and weights depend on them.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        message = gradient.to(wide, copy=True, memory_format=torch.contiguous_format)
        total = ctx.collectives.all_reduce(message, "backward", ctx.purpose)
        return total.to(gradient.dtype), None, None


def sum_gradient(x: Tensor, collectives: Collectives, purpose: str) -> Tensor:
    """Identity forward; backward, the gradient is summed over the P processes (Megatron's *f*)."""
    return x if collectives.processes == 1 else _SumGradient.apply(x, collectives, purpose)
