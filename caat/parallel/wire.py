"""How activations travel between processes: in which type, summed in which, and beside what."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.int8 import pack, unpack
from caat.parallel.priority import wake_first
from conf.sync import SyncConfig

Wait = Callable[[], object]
# The name from torch 2.13 on, and before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
WIRE_DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Wire:
    """``dtype`` is sent (None: as the activations are), sums are made in ``sum_dtype`` or wider.

    ``overlap``: arithmetic goes on while a sum is on its way; else every sum is waited for at once.
    """

    dtype: torch.dtype | None = None
    sum_dtype: torch.dtype = torch.float32
    overlap: bool = True

    @staticmethod
    def of(sync: SyncConfig) -> Wire:
        """As the settings say; ``auto`` sends activations in their own type and sums them in float32."""
        dtype = None if sync.wire_dtype == "auto" else WIRE_DTYPES[sync.wire_dtype]
        return Wire(dtype, WIRE_DTYPES.get(sync.sum_dtype, torch.float32), sync.overlap)

    def message(self, x: Tensor) -> Tensor:
        """The activations ``x`` [..., k] as they travel: ``x`` itself if the type is the same."""
        if self.dtype is torch.int8:
            return pack(x)
        return x if self.dtype is None else x.to(self.dtype)

    def restore(self, message: Tensor, x: Tensor) -> None:
        """Write what came back into ``x``."""
        if message is not x:
            x.copy_(unpack(message).view_as(x) if self.dtype is torch.int8 else message)

    def by_slices(self, message: Tensor, processes: int) -> bool:
        """Whether sums need a wider type than travels. A sum of two floats is rounded once in either."""
        if message.dtype is torch.int8:
            return True
        return processes > 2 and torch.promote_types(message.dtype, self.sum_dtype) != message.dtype

    @torch.no_grad()  # the thread of a Background has gradients on, whatever its caller has
    def sum_by_slices(self, message: Tensor, group: dist.ProcessGroup | None) -> None:
        """Replace the contiguous ``message`` by its sum over the processes, rounded once.

        Each process gets one slice of everybody's message, adds it up in :attr:`sum_dtype`, and the slices
        are gathered: the value of an all-reduce in that type rounded at the end, for the bytes of a ring
        all-reduce of ``message`` (2 (P - 1) / P of it per process; more with fewer tokens of 8-bit integers
        than processes).
        """
        processes = dist.get_world_size(group)
        # A token of 8-bit integers is not cut: its scale is for all of it.
        rows = message if message.dtype is torch.int8 else message.view(-1, 1)
        slice_size = -(-len(rows) // processes)
        padded = F.pad(rows, (0, 0, 0, slice_size * processes - len(rows)))
        slices = torch.empty_like(padded)
        dist.all_to_all_single(slices, padded, group=group)
        total = self._added(slices.unflatten(0, (processes, slice_size)))
        _all_gather(padded, total, group=group)
        rows.copy_(padded[: len(rows)])

    def _added(self, slices: Tensor) -> Tensor:
        """[P, ...] -> [...], as it travels on."""
        if slices.dtype is torch.int8:
            return pack(unpack(slices).sum(0))
        return slices.sum(0, dtype=self.sum_dtype).to(slices.dtype)


class Background:
    """Runs a few collectives in a row beside what the caller computes: on a CUDA stream, or in a thread."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._thread: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Tensor], None], message: Tensor) -> Wait:
        """Start ``work(message)``; the returned function waits for it and raises what it raised."""
        if not message.is_cuda:
            self._thread = self._thread or ThreadPoolExecutor(1, "caat-sum", initializer=wake_first)
            return self._thread.submit(work, message).result
        stream = self._stream = self._stream or torch.cuda.Stream(message.device, priority=-1)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work(message)
        message.record_stream(stream)
        return lambda: torch.cuda.current_stream().wait_stream(stream)
