"""The residual stream of a partially synchronised model: shared channels once, private ones per shard."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from caat.parallel.background import Wait
from caat.parallel.collectives import Collectives, Direction
from caat.parallel.mesh import Mesh


class Transfer:
    """A partial synchronisation on its way: the sum itself forward, later its gradient backward.

    Whatever is computed between :meth:`start` and :meth:`wait` hides it.
    """

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._wait: Wait | None = None

    @property
    def travels(self) -> bool:
        return self._collectives.processes > 1

    def start(self, x: Tensor, direction: Direction = "forward") -> None:
        """Begin to sum ``x`` over the processes, in place."""
        assert self._wait is None, "a stream was read twice while its sum was on its way"
        self._wait = self._collectives.start_sum(x, direction, "sync")

    def start_backward(self, gradient: Tensor) -> Tensor:
        """Begin to sum a copy and return it (``gradient`` itself if there is nobody to send it to)."""
        if not self.travels:
            return gradient
        message = gradient.clone(memory_format=torch.contiguous_format)
        self.start(message, "backward")
        return message

    def wait(self) -> None:
        """Until the sum is there; at once if nothing is on its way."""
        wait, self._wait = self._wait, None
        if wait is not None:
            wait()


class Stream(NamedTuple):
    """Activations of h channels on the r local shards, of which the first k are the same on every shard.

    ``shared``  [..., k]         stored once, though every shard reads it: gradients of all local readers
                                 add up here, and partial synchronisation sums them over the processes.
    ``private`` [r, ..., h - k]  one per shard.
    """

    shared: Tensor
    private: Tensor
    # Of a stream that nothing was added to yet.
    entry: Entry | None = None

    def settled(self) -> Stream:
        return self

    @property
    def travels(self) -> bool:
        """Whether another process waits for the gradient."""
        return self.entry is not None

    def stack(self) -> Tensor:
        """The plain form [r, ..., h]: what each local shard sees."""
        shards = len(self.private)
        return torch.cat([self.shared.expand(shards, *self.shared.shape), self.private], dim=-1)


class Arriving(NamedTuple):
    """A stream whose last synchronisation is on its way; to be read once, by a norm or :meth:`settled`.

    The shared channels are ``residual`` + ``sum``, both [..., k], once ``transfer`` is over.
    """

    residual: Tensor
    sum: Tensor
    private: Tensor
    transfer: Transfer
    # sum(private²) [r, T, 1], where a compiled kernel took it on the way.
    private_square: Tensor | None = None

    def settled(self) -> Stream:
        """The stream, its last synchronisation waited for."""
        return Stream(_Arrive.apply(self.residual, self.sum, self.transfer), self.private)

    @property
    def travels(self) -> bool:
        """Whether another process takes part."""
        return self.transfer.travels


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual: Tensor, arriving: Tensor, transfer: Transfer) -> Tensor:  # type: ignore[override]
        ctx.transfer = transfer
        transfer.wait()
        return residual + arriving

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return gradient, ctx.transfer.start_backward(gradient), None


class Entry:
    """The gradient of what a stream began with, to be summed over all shards: the first reader starts it."""

    def __init__(self, mesh: Mesh) -> None:
        self._collectives = mesh.tensor
        self._from: list[int] = []
        self._message: Tensor | None = None
        self._wait: Wait | None = None

    def start(self, shared_grad: Tensor, private_grad: Tensor) -> None:
        """Begin to sum the gradients of the shared [T, k] and of the private channels [r, T, h - k]."""
        self._from = [shared_grad.data_ptr(), private_grad.data_ptr()]
        self._message = torch.cat([shared_grad, private_grad.sum(0)], dim=-1)
        self._wait = self._collectives.start_sum(self._message, "backward", "embedding")

    def finish(self, shared_grad: Tensor, private_grad: Tensor) -> Tensor:
        """The sum [T, h] over all shards."""
        if self._message is None:
            self.start(shared_grad, private_grad)
        assert self._from == [shared_grad.data_ptr(), private_grad.data_ptr()], "a stream was read twice"
        message, wait = self._message, self._wait
        self._message = self._wait = None
        assert message is not None and wait is not None
        wait()
        return message


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, shared_channels: int, mesh: Mesh, entry: Entry):  # type: ignore[override]
        ctx.entry = entry
        private = x[..., shared_channels:]
        return x[..., :shared_channels], private.expand(mesh.local, *private.shape)

    @staticmethod
    def backward(ctx, shared_grad: Tensor, private_grad: Tensor):  # type: ignore[override]
        total = ctx.entry.finish(shared_grad.flatten(0, -2), private_grad.flatten(1, -2))
        return total.view(*shared_grad.shape[:-1], -1), None, None, None


def enter(x: Tensor, shared_channels: int, mesh: Mesh) -> Stream:
    """Start a stream from ``x`` [..., h], the same on every shard; its gradient is summed over all shards."""
    if mesh.processes == 1:
        private = x[..., shared_channels:]
        return Stream(x[..., :shared_channels], private.expand(mesh.local, *private.shape))
    entry = Entry(mesh)
    shared, private = _Enter.apply(x, shared_channels, mesh, entry)
    return Stream(shared, private, entry)
