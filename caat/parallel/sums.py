"""Algorithms that sum a message over processes: one all-reduce, or by slices in a wider type."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.int8 import pack, unpack
from caat.parallel.wire import WIRE_DTYPES
from conf.sync import SyncConfig

# The name from torch 2.13 on, and before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class SumOptions:
    """How activations are summed over processes.

    They are sent as ``wire_dtype`` (None: in their own type) and added in ``sum_dtype`` or a wider type.
    ``overlap``: arithmetic continues while a sum is in flight; otherwise every sum is waited for at once.
    ``halves``: one half of a micro-batch is computed while the sums of the other are in flight.
    """

    wire_dtype: torch.dtype | None = None
    sum_dtype: torch.dtype = torch.float32
    overlap: bool = True
    halves: bool = False

    @staticmethod
    def of(sync: SyncConfig) -> SumOptions:
        """Build from the settings; ``auto`` sends activations in their own type and sums them in float32."""
        wire_dtype = None if sync.wire_dtype == "auto" else WIRE_DTYPES[sync.wire_dtype]
        sum_dtype = WIRE_DTYPES.get(sync.sum_dtype, torch.float32)
        return SumOptions(wire_dtype, sum_dtype, sync.overlap, sync.halves)


def needs_slices(message: Tensor, processes: int, sum_dtype: torch.dtype) -> bool:
    """Return whether sums need a wider type than the message. A sum of two floats is rounded once anyway."""
    if message.dtype is torch.int8:
        return True
    return processes > 2 and torch.promote_types(message.dtype, sum_dtype) != message.dtype


@torch.no_grad()  # grad mode is per thread, and on by default in the thread of a Background
def sum_by_slices(message: Tensor, group: dist.ProcessGroup | None, sum_dtype: torch.dtype) -> None:
    """Replace the contiguous ``message`` by its sum over the processes, rounded once.

    An all-to-all gives each process one slice of every message. It adds them in ``sum_dtype``, and an
    all-gather collects the sums. The result is that of an all-reduce in ``sum_dtype``, rounded at the end,
    for the bytes of a ring all-reduce of ``message``: 2 (P - 1) / P of it per process (more if there are
    fewer tokens of 8-bit integers than processes).
    """
    processes = dist.get_world_size(group)
    # A token of 8-bit integers is not split, because all its channels share one scale.
    rows = message if message.dtype is torch.int8 else message.view(-1, 1)
    slice_size = -(-len(rows) // processes)
    missing = slice_size * processes - len(rows)
    # Without padding, the slices are those of the message itself.
    padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    slices = torch.empty_like(padded)
    dist.all_to_all_single(slices, padded, group=group)
    total = _added(slices.unflatten(0, (processes, slice_size)), sum_dtype)
    _all_gather(padded, total, group=group)
    if missing:
        rows.copy_(padded[: len(rows)])


def _added(slices: Tensor, sum_dtype: torch.dtype) -> Tensor:
    """Sum [P, ...] -> [...], in the type of the message."""
    if slices.dtype is torch.int8:
        return pack(unpack(slices).sum(0))
    return slices.sum(0, dtype=sum_dtype).to(slices.dtype)
