"""How activations travel between processes: in which type, summed in which, and beside what."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.priority import wake_first
from conf.sync import SyncConfig

Wait = Callable[[], object]
WIRE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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

    def cast(self, x: Tensor) -> Tensor:
        """``x`` as it travels; itself if the type is the same."""
        return x if self.dtype is None else x.to(self.dtype)

    def by_slices(self, message: Tensor, processes: int) -> bool:
        """Whether sums need a wider type than travels. A sum of two is rounded once in either."""
        return processes > 2 and torch.promote_types(message.dtype, self.sum_dtype) != message.dtype


@torch.no_grad()  # the thread of a Background has gradients on, whatever its caller has
def sum_by_slices(message: Tensor, sum_dtype: torch.dtype, group: dist.ProcessGroup | None) -> None:
    """Replace the contiguous ``message`` by its sum over the processes, added in ``sum_dtype``, rounded once.

    Each process gets one slice of everybody's message, adds it up, and the slices are gathered: the value of
    an all-reduce in ``sum_dtype`` rounded at the end, for the bytes of a ring all-reduce of ``message``
    (2 (P - 1) / P of it per process).
    """
    processes = dist.get_world_size(group)
    flat = message.view(-1)
    slice_size = -(-flat.numel() // processes)
    padded = F.pad(flat, (0, slice_size * processes - flat.numel()))
    slices = torch.empty_like(padded)
    dist.all_to_all_single(slices, padded, group=group)
    total = slices.view(processes, slice_size).sum(0, dtype=sum_dtype).to(message.dtype)
    dist.all_gather_into_tensor(padded, total, group=group)
    flat.copy_(padded[: flat.numel()])


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
        stream = self._stream = self._stream or torch.cuda.Stream(message.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work(message)
        message.record_stream(stream)
        return lambda: torch.cuda.current_stream().wait_stream(stream)
