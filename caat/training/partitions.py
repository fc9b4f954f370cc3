"""Messages and weights of ZeRO, by attributes of DeepSpeed's optimizers that it does not document."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor, nn

from caat.compression.codec import Shapes
from caat.parallel.zero_messages import Ranges
from caat.planning.zero import BUCKET


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


def message_shapes(zero: Any, model: nn.Module, stage: int) -> Callable[[int], Shapes]:
    """Return a function from the length of a message of gradients to the shapes of the parameters in it.

    ``zero`` is DeepSpeed's optimizer. Messages of stages 0 and 3, of stage 1 in bf16, and of stages 1 and 2
    are of different kinds; at stage 3 each parameter is padded to a multiple of the replicas. The function
    returns () if its shapes do not add up to the message.
    """
    if stage == 3:
        return lambda n: _adding_up([tuple(p.ds_shape) for p in _bucket(zero)], n, zero.partition_count)
    if hasattr(zero, "ipg_buckets"):
        groups = zero.bit16_groups
        return lambda n: _adding_up([tuple(groups[g][i].shape) for g, i, _ in _bucket(zero)], n)
    if hasattr(zero, "bf16_groups"):
        pairs = zip(zero.bf16_groups, zero.bf16_groups_flat, strict=True)
        sent = [_with_padding([tuple(p.shape) for p in group], flat.numel()) for group, flat in pairs]
    else:
        sent = [[tuple(p.shape)] for p in model.parameters()]
    buckets = _buckets(sent)
    return lambda n: next((found for each in buckets if (found := _adding_up(each, n))), ())


def _adding_up(shapes: list[tuple[int, ...]], n: int, multiple: int = 1) -> Shapes:
    """Return ``shapes`` if such tensors, each padded to a ``multiple``, have ``n`` numbers; otherwise ()."""
    return shapes if sum(-(-prod(shape) // multiple) * multiple for shape in shapes) == n else ()


def _with_padding(shapes: list[tuple[int, ...]], n: int) -> list[tuple[int, ...]]:
    missing = n - sum(map(prod, shapes))
    return [*shapes, (missing,)] if missing else shapes


def _buckets(tensors: list[list[tuple[int, ...]]]) -> list[list[tuple[int, ...]]]:
    """Join tensors until a bucket has more than BUCKET numbers, as DeepSpeed does outside its optimizers."""
    buckets: list[list[tuple[int, ...]]] = [[]]
    for shapes in tensors:
        if sum(map(prod, buckets[-1])) > BUCKET:
            buckets.append([])
        buckets[-1] += shapes
    return buckets


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


def optimizer_calls(zero: Any, stage: int) -> int:
    """Return how often ``zero``, DeepSpeed's optimizer, calls ``step`` of ours in a training step."""
    if stage == 3:
        return len(zero.fp16_groups)
    # Stages 1 and 2; in bf16, stage 1 has an optimizer of its own, which steps once.
    return len(zero.bit16_groups) if hasattr(zero, "bit16_groups") else 1


def refresh_weights(zero: Any, stage: int) -> None:
    """Take changed float32 master weights into the model, as after a step. Collective over the replicas.

    ``zero`` is DeepSpeed's optimizer. At stage 0 the master weights are those of the model.
    """
    if stage in (1, 2):
        zero.update_lp_params()
    if stage == 3:
        # Small parameters, which DeepSpeed gathers once for all passes. Before the first pass they must stay
        # partitioned: DeepSpeed notes which modules use another one's parameters when these are missing.
        gathered = [p for p in zero.persistent_parameters if p.ds_status.name == "AVAILABLE"]
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if gathered:
            gathered[0].all_gather(gathered)
