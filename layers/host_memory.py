"""Host memory of a KV cache: everything that passes between it and the device goes through here."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from caat.parallel.pinned import empty_pinned

Shape = tuple[int, int, int, int]


class Memory(Protocol):
    """One layer's keys and values, of the ``shape`` [batch, KV heads, capacity, head_dim], off the device.

    ``fetched_bytes`` and ``stored_bytes`` count what has moved to and from the device.
    """

    shape: Shape
    fetched_bytes: int
    stored_bytes: int

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values [batch, heads, new, head_dim] of the tokens from column ``start`` on."""

    def read(self, stop: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the first ``stop`` tokens."""

    def rows(self, batch: Tensor, head: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values [n, head_dim] at ``n`` places."""


class HostMemory:
    """The :class:`Memory` of this host."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self._device = shape, device
        self.fetched_bytes = self.stored_bytes = 0
        # Pinned memory is copied without passing through another buffer, while the processor does other work.
        self._pinned = device.type == "cuda"
        empty = empty_pinned if self._pinned else torch.empty
        self._stores = [empty(shape, dtype=dtype) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if self._pinned else None

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        for store, each in zip(self._stores, (keys, values), strict=True):
            store[:, :, start : start + each.shape[2]] = each
            self.stored_bytes += each.nbytes

    def read(self, stop: int) -> tuple[Tensor, Tensor]:
        keys, values = (store[:, :, :stop].to(self._device) for store in self._stores)
        self.fetched_bytes += keys.nbytes + values.nbytes
        return keys, values

    def rows(self, batch: Tensor, head: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        places = ((batch * self.shape[1] + head) * self.shape[2] + column).cpu()
        if self._stream is None:
            keys, values = (self._gather(store, places) for store in self._stores)
        else:
            # The keys are on their way while the processor gathers the values. A stream of their own: copies
            # do not wait for kernels that were started before.
            with torch.cuda.stream(self._stream):
                keys, values = (
                    self._gather(store, places).to(self._device, non_blocking=True) for store in self._stores
                )
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._stream)
            for each in (keys, values):
                each.record_stream(here)
        self.fetched_bytes += keys.nbytes + values.nbytes
        return keys, values

    def _gather(self, store: Tensor, places: Tensor) -> Tensor:
        gathered = torch.empty((len(places), self.shape[3]), dtype=store.dtype, pin_memory=self._pinned)
        return torch.index_select(store.flatten(0, 2), 0, places, out=gathered)
