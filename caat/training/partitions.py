"""What each replica owns of a message of ZeRO, read from attributes of DeepSpeed's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from caat.parallel.zero_messages import Ranges


def zero_owners(zero: Any, replicas: int) -> Callable[[int], Ranges | None]:
    """Return a function from the length of a message to the ranges of it that each replica owns.

    ``zero`` is DeepSpeed's optimizer of stage 1 or 2. It all-reduces a bucket of gradients although each
    replica keeps only its partition, and reads who owns what from the attributes used here. The function
    returns None if its ranges do not add up to the message, so that all replicas get all of it.
    """

    def owners(n: int) -> Ranges | None:
        ranges: Ranges = [[] for _ in range(replicas)]
        at = 0
        for group, index, number in _bucket(zero):
            numbers = zero.bit16_groups[group][index].numel()
            starts = sorted(
                (zero.grad_start_offset[group][owner][number], owner)
                for owner in zero.param_to_partition_ids[group][number]
            )
            ends = [start for start, _ in starts[1:]] + [numbers]
            for (start, owner), end in zip(starts, ends, strict=True):
                _append(ranges[owner], at + start, end - start)
            at += numbers
        return ranges if at == n else None

    return owners


def zero_padding(zero: Any, replicas: int) -> Callable[[int], list[tuple[int, int]] | None]:
    """Return a function from the length of a reduce-scattered message to the ranges of it that are padding.

    ``zero`` is DeepSpeed's optimizer of stage 3, which pads each parameter with uninitialised memory. The
    function returns None if its ranges do not add up to the message.
    """

    def padding(n: int) -> list[tuple[int, int]] | None:
        found, at = [], 0
        sizes = [parameter.ds_numel for parameter in _bucket(zero)]
        for owner in range(replicas):
            for size in sizes:
                part = -(-size // replicas)
                real = min(part, max(0, size - owner * part))
                if real < part:
                    found.append((at + real, part - real))
                at += part
        return found if at == n else None

    return padding


def _bucket(zero: Any) -> list[Any]:
    """Return DeepSpeed's description of the parameters in the message that it is sending."""
    filled = [bucket.params for bucket in zero.ipg_buckets.values() if bucket.params]
    return filled[0] if len(filled) == 1 else []


def _append(ranges: list[tuple[int, int]], start: int, size: int) -> None:
    """Append a range, or extend the last one if it ends where this one starts."""
    if ranges and sum(ranges[-1]) == start:
        start, size = ranges[-1][0], ranges[-1][1] + size
        ranges.pop()
    ranges.append((start, size))


def gathered_weights(zero: Any, rank: int) -> list[tuple[Tensor, Tensor]]:
    """Return the flat live weights that replicas gather after a step, and this replica's part of each.

    ``zero`` is DeepSpeed's optimizer of stage 1 or 2; in bf16, stage 1 has an optimizer of its own.
    """
    if hasattr(zero, "bf16_partitioned_groups"):
        flats, parts = zero.bf16_groups_flat, zero.bf16_partitioned_groups
    else:
        flats, parts = zero.bit16_groups_flat, zero.parallel_partitioned_bit16_groups
    return [(flat, each[rank]) for flat, each in zip(flats, parts, strict=True)]
