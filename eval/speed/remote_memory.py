"""A host whose memory holds a KV cache, at the other end of a link: one process stores, the other asks.

The process that asks is rank 0, the host rank 1. Each request is four numbers, followed by its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from layers.host_memory import Shape

ASKING, HOST = 0, 1


class Kind(IntEnum):
    """What a request asks for; its three other numbers are that of a cache and two sizes."""

    WRITE = 0
    READ = 1
    ROWS = 2
    COMPONENTS = 3
    STOP = 4


class RemoteMemory:
    """The :class:`~layers.host_memory.Memory` on the other host, where each has a ``number`` of its own.

    ``sent_bytes`` counts what is asked.
    """

    def __init__(self, number: int, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self._number, self._dtype = shape, number, dtype
        self.fetched_bytes = self.stored_bytes = self.sent_bytes = 0
        # Where a whole cache arrives.
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def moved_bytes(self) -> int:
        """Bytes in both directions."""
        return self.fetched_bytes + self.stored_bytes + self.sent_bytes

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        self._ask(Kind.WRITE, start, keys.shape[2])
        for each in (keys, values):
            dist.send(each.contiguous(), HOST)
            self.stored_bytes += each.nbytes

    def read(self, stop: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the first ``stop`` tokens; all of the capacity is sent."""
        if self._whole is None:
            self._whole = (
                torch.empty(self.shape, dtype=self._dtype),
                torch.empty(self.shape, dtype=self._dtype),
            )
        self._ask(Kind.READ)
        self._receive(*self._whole)
        return self._whole[0][:, :, :stop], self._whole[1][:, :, :stop]

    def rows(self, batch: Tensor, head: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        places = ((batch * self.shape[1] + head) * self.shape[2] + column).to(torch.int32)
        keys, values = (torch.empty(len(places), self.shape[3], dtype=self._dtype) for _ in range(2))
        if len(places):
            self._ask(Kind.ROWS, len(places))
            self._send(places)
            self._receive(keys, values)
        return keys, values

    def components(self, channels: Tensor) -> Tensor:
        """Return ``channels`` [batch, heads, r] of all keys, [batch, heads, r, capacity]."""
        found = torch.empty(*channels.shape, self.shape[2], dtype=self._dtype)
        self._ask(Kind.COMPONENTS, channels.shape[2])
        self._send(channels.to(torch.int32))
        self._receive(found)
        return found

    def _ask(self, kind: Kind, first: int = 0, second: int = 0) -> None:
        self._send(torch.tensor([kind, self._number, first, second]))

    def _send(self, tensor: Tensor) -> None:
        dist.send(tensor, HOST)
        self.sent_bytes += tensor.nbytes

    def _receive(self, *tensors: Tensor) -> None:
        for each in tensors:
            dist.recv(each, HOST)
            self.fetched_bytes += each.nbytes


def stop_serving() -> None:
    """Let the other process return from :func:`serve`."""
    dist.send(torch.tensor([Kind.STOP, 0, 0, 0]), HOST)


def serve(shape: Shape, dtype: torch.dtype) -> None:
    """Be the memory of caches of keys and values of this shape until the other process stops.

    Where channels of the keys are asked for, a second copy by channel is kept, as SparQ does: reading some of
    them is reading contiguous memory.
    """
    batch, heads, capacity, d = shape
    stores: dict[int, list[Tensor]] = {}
    by_channel: dict[int, Tensor] = {}
    while True:
        kind, number, first, second = _request()
        if kind == Kind.STOP:
            return
        store = stores.setdefault(number, [])
        if kind == Kind.WRITE:
            store.extend(torch.zeros(shape, dtype=dtype) for _ in range(2 - len(store)))
            for into in store:
                new = torch.empty(batch, heads, second, d, dtype=dtype)
                dist.recv(new, ASKING)
                into[:, :, first : first + second] = new
            if number in by_channel:
                columns = slice(first, first + second)
                by_channel[number][..., columns] = store[0][:, :, columns].mT
        elif kind == Kind.READ:
            _answer(store)
        elif kind == Kind.ROWS:
            places = torch.empty(first, dtype=torch.int32)
            dist.recv(places, ASKING)
            _answer([each.flatten(0, 2).index_select(0, places) for each in store])
        else:
            asked = torch.empty(batch, heads, first, dtype=torch.int32)
            dist.recv(asked, ASKING)
            if number not in by_channel:
                by_channel[number] = store[0].mT.contiguous()
            wide = asked.long()[..., None].expand(-1, -1, -1, capacity)
            _answer([by_channel[number].gather(2, wide)])


def _request() -> list[int]:
    numbers = torch.empty(4, dtype=torch.int64)
    dist.recv(numbers, ASKING)
    return numbers.tolist()


def _answer(tensors: Sequence[Tensor]) -> None:
    for each in tensors:
        dist.send(each, ASKING)
