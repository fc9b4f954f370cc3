"""The residual stream of a partially synchronised model: shared channels once, private channels per shard."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from caat.parallel.background import Wait
from caat.parallel.collectives import Collectives, Direction
from caat.parallel.mesh import Mesh

# Up to this many tokens, a pass without gradients is faster on the direct path (direct.py): the overlap would
# hide less time than its additional operations take.
FEW_TOKENS = 128


class Transfer:
    """A partial synchronisation in flight: the sum in forward, and later its gradient in backward.

    Arithmetic between :meth:`start` and :meth:`wait` hides it. Two layers share the object: forward, the
    row-parallel layer starts the sum and the column-parallel layer after it waits; backward, the roles are
    swapped.
    """

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._wait: Wait | None = None

    @property
    def travels(self) -> bool:
        return self._collectives.processes > 1

    def start(self, x: Tensor, direction: Direction = "forward") -> None:
        """Start summing ``x`` over the processes, in place."""
        assert self._wait is None, "a stream was read twice while its sum was in flight"
        self._wait = self._collectives.start_sum(x, direction, "sync")

    def start_backward(self, gradient: Tensor) -> Tensor:
        """Start summing a copy of ``gradient`` and return it (``gradient`` itself on a single process).

        A copy, because the gradient itself also flows on along the residual, before the sum arrives.
        """
        if not self.travels:
            return gradient
        message = gradient.clone(memory_format=torch.contiguous_format)
        self.start(message, "backward")
        return message

    def wait(self) -> None:
        """Wait for the sum; return at once if none is in flight."""
        wait, self._wait = self._wait, None
        if wait is not None:
            wait()


class Stream(NamedTuple):
    """Activations of h channels on the r local shards, of which the first k are the same on every shard.

    ``shared``  [..., k]         stored once and read by every shard: autograd adds the gradients of all
                                 local readers, and partial synchronisation sums them over the processes.
    ``private`` [r, ..., h - k]  one per shard.
    """

    shared: Tensor
    private: Tensor
    # Set until the first layer has added to the stream.
    entry: Entry | None = None

    @property
    def shared_channels(self) -> int:
        return self.shared.shape[-1]

    def settled(self) -> Stream:
        return self

    @property
    def travels(self) -> bool:
        """Whether the gradient is summed with other processes."""
        return self.entry is not None

    def stack(self) -> Tensor:
        """Return each local shard's activations as a plain tensor [r, ..., h]."""
        shards = len(self.private)
        return torch.cat([self.shared.expand(shards, *self.shared.shape), self.private], dim=-1)


class Arriving(NamedTuple):
    """A stream with its latest synchronisation in flight; read it once, by a norm or :meth:`settled`.

    The shared channels are ``residual`` + ``sum``, both [..., k], once ``transfer`` has completed.
    """

    residual: Tensor
    sum: Tensor
    private: Tensor
    transfer: Transfer
    # sum(private²) [r, T, 1] if a compiled kernel has computed it.
    private_square: Tensor | None = None

    def settled(self) -> Stream:
        """Wait for the latest synchronisation and return the stream."""
        return Stream(_Arrive.apply(self.residual, self.sum, self.transfer), self.private)

    @property
    def travels(self) -> bool:
        """Whether the sum involves other processes."""
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
    """The gradient of a stream's initial value, to be summed over all shards.

    The backward pass of the first reader starts the sum, so that its weight gradient hides it;
    ``_Enter.backward`` waits for it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._collectives = mesh.tensor
        self._from: list[int] = []
        self._message: Tensor | None = None
        self._wait: Wait | None = None

    def start(self, shared_grad: Tensor, private_grad: Tensor) -> None:
        """Start summing the gradients of the shared [T, k] and of the private channels [r, T, h - k]."""
        self._from = [shared_grad.data_ptr(), private_grad.data_ptr()]
        self._message = torch.cat([shared_grad, private_grad.sum(0)], dim=-1)
        self._wait = self._collectives.start_sum(self._message, "backward", "embedding")

    def finish(self, shared_grad: Tensor, private_grad: Tensor) -> Tensor:
        """Wait for the sum over all shards and return it, [T, h]."""
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


class WholeStream(NamedTuple):
    """A stream as one tensor with nothing in flight, for passes of few tokens without gradients (direct.py).

    ``whole`` is [r, T, h], one row per local shard, or [T, h] if all ``shards`` have the same stream.
    ``tokens`` are the sizes that T stands for.
    """

    whole: Tensor
    shared_channels: int
    tokens: torch.Size
    shards: int

    def settled(self) -> Stream:
        """Return the stream as a pair of views."""
        whole, k = self.stack(), self.shared_channels
        return Stream(whole[0, ..., :k], whole[..., k:])

    def stack(self) -> Tensor:
        """Return each local shard's activations as a plain tensor [r, ..., h]."""
        return self.whole.expand(self.shards, *self.whole.shape[-2:]).unflatten(1, self.tokens)


# A residual stream in any form.
AnyStream = Stream | Arriving | WholeStream


class Halves(NamedTuple):
    """The streams of two halves of a batch, of which one computes while the sums of the other are in flight.

    DeepSpeed-Domino (arXiv 2409.15241) hides sums in this way. Unlike private channels, it needs nothing that
    the shards do not share.
    """

    first: AnyStream
    second: AnyStream

    def settled(self) -> Stream:
        """Wait for both halves and return the stream of the batch."""
        settled = [half.settled() for half in self]
        shared, private = ([getattr(x, name) for x in settled] for name in ("shared", "private"))
        return Stream(torch.cat(shared), torch.cat(private, dim=1))


BatchStream = AnyStream | Halves


def of_each(x: BatchStream, change: Callable[[AnyStream], AnyStream]) -> BatchStream:
    """Return ``x`` changed by ``change``, which is called for each half if there are two."""
    return Halves(change(x.first), change(x.second)) if isinstance(x, Halves) else change(x)


def enter(x: Tensor, shared_channels: int, mesh: Mesh) -> BatchStream:
    """Start a stream from ``x`` [..., h], the same on every shard; its gradient is summed over all shards.

    It is one of two halves of the batch if :class:`SumOptions` say so and gradients will be needed.
    """
    if not torch.is_grad_enabled() and x.shape[:-1].numel() <= FEW_TOKENS:
        return _whole(x, shared_channels, mesh.local)
    if mesh.processes == 1:
        private = x[..., shared_channels:]
        return Stream(x[..., :shared_channels], private.expand(mesh.local, *private.shape))
    if mesh.tensor.options.halves and torch.is_grad_enabled() and len(x) > 1:
        return Halves(*(_enter(half, shared_channels, mesh) for half in x.chunk(2)))
    return _enter(x, shared_channels, mesh)


def _enter(x: Tensor, shared_channels: int, mesh: Mesh) -> Stream:
    entry = Entry(mesh)
    shared, private = _Enter.apply(x, shared_channels, mesh, entry)
    return Stream(shared, private, entry)


def _whole(x: Tensor, shared_channels: int, shards: int) -> WholeStream:
    whole = x.flatten(0, -2)
    if shards > 1 and shared_channels < x.shape[-1]:
        whole = whole.expand(shards, *whole.shape)
    return WholeStream(whole, shared_channels, x.shape[:-1], shards)
