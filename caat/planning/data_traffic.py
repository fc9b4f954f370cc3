"""The messages of DeepSpeed (0.19) between replicas in one optimizer step.

:func:`full_messages` are those that DeepSpeed asks for. :func:`sent_bytes` are the bytes that the first
replica sends for them, by slices, codecs or schedules, and equal the counts of gradients and weights of
:class:`~caat.parallel.data_axis.DataAxis` to the byte, if gradients fit into one bucket and the codec has a
fixed size. The few numbers of control and loss are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from caat.parallel.ring import ring_bytes
from caat.planning.activations import WIDE
from caat.planning.parameters import Parameter, optimizer_groups
from caat.planning.zero import ALIGNMENT, LIVE, PERSISTENT
from caat.topology.settings import Schedules, Way
from conf.codec import BLOCK
from conf.data_sync import DataSyncConfig

if TYPE_CHECKING:
    from caat.compression.codec import Shapes


def full_messages(
    held: Sequence[Parameter], replicas: int, stage: int, precision: str, accumulation: int
) -> dict[str, int]:
    """Return the bytes of a step's full messages by collective, for the parameters ``held`` by a process.

    ``stage`` is the one that the engine runs (never 0 in bf16). Gradients are all-reduced at stages below 3,
    at stage 2 after every micro-batch; the updated weights are gathered at stages 1 and 2, where each
    optimizer group is padded to a multiple of 2 D numbers. At stage 3 gradients are reduce-scattered after
    every micro-batch, and weights gathered (:class:`GatheredWeights`), each padded to a multiple of D.
    """
    assert (stage, precision) != (0, "bf16"), "the engine runs stage 1 instead"
    if replicas == 1:
        return {}
    size = 2 if precision == "bf16" else WIDE
    numbers = sum(parameter.numbers for parameter in held)
    if stage == 0:
        return {"all_reduce": size * numbers}
    if stage == 3:
        scattered = size * sum(padded(parameter.numbers, replicas) for parameter in held)
        gathered = GatheredWeights.of(held, replicas, precision)
        return {"reduce_scatter": scattered * accumulation, "all_gather": gathered.in_a_step(accumulation)}
    aligned = sum(padded(group, ALIGNMENT * replicas) for group in _groups(held))
    # Only in this case does DeepSpeed send the optimizer's flat gradient buffer, padding included.
    sent = aligned if (stage, precision) == (1, "bf16") else numbers
    return {"all_reduce": size * sent * (accumulation if stage == 2 else 1), "all_gather": size * aligned}


class Sent(NamedTuple):
    """Bytes that the first replica sends in a step."""

    gradients: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        return self.gradients + self.weights


def sent_bytes(
    held: Sequence[Parameter],
    replicas: int,
    stage: int,
    precision: str,
    accumulation: int,
    *,
    sync: DataSyncConfig | None = None,
) -> Sent:
    """Return what the first replica sends; arguments as in :func:`full_messages`.

    An all-reduce counts as a ring. At stages 1 and 2 gradients go to their owners: each replica sends what
    belongs to others. ``sync`` are the codecs and the schedule; the size of some codecs is a mean.
    """
    if replicas == 1:
        return Sent()
    sync = sync or DataSyncConfig()
    itemsize = 2 if precision == "bf16" else WIDE
    micro_batches = accumulation if stage > 1 else 1
    rows = gathered_rows(held, replicas, stage)
    # Stage 3 does not keep the weights that changes are added to.
    codec = sync.weights_codec if stage in (1, 2) else "none"
    weights = _gathered_bytes(rows, replicas, itemsize, codec, Schedules.of(sync.route, replicas))
    if stage == 3:
        passes = GatheredWeights.of(held, replicas, precision).in_passes(accumulation)
        weights += passes * (replicas - 1) // replicas
    return Sent(micro_batches * _reduced_bytes(held, replicas, stage, precision, sync), weights)


def _reduced_bytes(
    held: Sequence[Parameter], replicas: int, stage: int, precision: str, sync: DataSyncConfig
) -> int:
    """Return what the first replica sends for the gradients of a micro-batch, or of a step before stage 2."""
    itemsize = 2 if precision == "bf16" else WIDE
    slices, whole = owned_slices(held, replicas, stage, precision)
    schedules = Schedules.of(sync.route, replicas)
    if schedules:
        return _reduced_way(schedules, slices, whole, itemsize).sent_bytes(0)
    if sync.codec != "none":
        return encoded_bytes(sync.codec, slices, whole, [p.shape for p in held])
    return ring_bytes(itemsize * sum(slices), replicas) if whole else itemsize * sum(slices[1:])


def _gathered_bytes(
    rows: Sequence[int], replicas: int, itemsize: int, codec: str, schedules: Schedules | None
) -> int:
    """Return the bytes that the first replica sends in gathers of so many numbers of every replica."""
    rows, itemsize = _encoded(rows, itemsize, codec)
    if schedules is None:
        return (replicas - 1) * itemsize * sum(rows)
    return sum(way.sent_bytes(0) for way in _gathered_ways(schedules, rows, replicas, itemsize))


def scheduled_ways(
    held: Sequence[Parameter],
    replicas: int,
    stage: int,
    precision: str,
    schedules: Schedules,
    *,
    weights_codec: str,
) -> tuple[Way, list[Way]]:
    """Return how gradients travel along ``schedules``, and each gather after the step."""
    itemsize = 2 if precision == "bf16" else WIDE
    slices, whole = owned_slices(held, replicas, stage, precision)
    rows, size = _encoded(gathered_rows(held, replicas, stage), itemsize, weights_codec)
    return _reduced_way(schedules, slices, whole, itemsize), _gathered_ways(schedules, rows, replicas, size)


def _reduced_way(schedules: Schedules, slices: Sequence[int], whole: bool, itemsize: int) -> Way:
    collective, numbers = ("all-reduce", sum(slices)) if whole else ("reduce-scatter", slices)
    return schedules.way(collective, numbers, itemsize)


def _gathered_ways(schedules: Schedules, rows: Sequence[int], replicas: int, itemsize: int) -> list[Way]:
    return [schedules.way("all-gather", [n] * replicas, itemsize) for n in rows]


def _encoded(rows: Sequence[int], itemsize: int, codec: str) -> tuple[Sequence[int], int]:
    """Return rows of numbers and their size; with a ``codec``, the bytes that it makes of them."""
    if codec == "none":
        return rows, itemsize
    from caat.compression.spec import make_codec

    return [make_codec(codec).size(n) for n in rows], 1


class Kept(NamedTuple):
    """Numbers that messages of a process keep between steps."""

    residuals: int = 0
    # Numbers of the gathered weights, in the type of the weights.
    weights: int = 0


def kept_numbers(
    held: Sequence[Parameter], replicas: int, stage: int, precision: str, *, sync: DataSyncConfig
) -> Kept:
    """Return the residuals of error feedback and the gathered weights that the first replica keeps."""
    if replicas == 1:
        return Kept()
    residuals = weights = 0
    if sync.codec != "none" and sync.feedback:
        from caat.compression.spec import make_codec

        codec = make_codec(sync.codec)
        slices, whole = owned_slices(held, replicas, stage, precision)
        # A replica does not encode its own slice, unless all replicas need it.
        numbers = sum(slices) if whole else sum(slices[1:])
        if codec.way == "linear":
            numbers = _numbers(slices, whole, [p.shape for p in held])
        residuals = numbers if codec.biased else 0
    if sync.weights_codec != "none" and stage in (1, 2):
        weights = sum(gathered_rows(held, replicas, stage))
    return Kept(residuals, weights)


def owned_slices(
    held: Sequence[Parameter], replicas: int, stage: int, precision: str
) -> tuple[list[int], bool]:
    """Return the numbers of a message that each replica sums, and whether all replicas need all sums."""
    if stage == 3:
        scattered = sum(padded(parameter.numbers, replicas) for parameter in held)
        return [scattered // replicas] * replicas, False
    groups = _groups(held)
    if stage == 0 or (stage, precision) == (1, "bf16"):
        alignment = ALIGNMENT * replicas if stage else 1
        numbers = sum(padded(group, alignment) for group in groups)
        each = padded(-(-numbers // replicas), BLOCK)
        return [min(each, max(0, numbers - each * owner)) for owner in range(replicas)], True
    owned = []
    for owner in range(replicas):
        parts = [padded(group, ALIGNMENT * replicas) // replicas for group in groups]
        left = [group - owner * part for group, part in zip(groups, parts, strict=True)]
        owned.append(sum(min(part, max(0, n)) for part, n in zip(parts, left, strict=True)))
    return owned, False


def gathered_rows(held: Sequence[Parameter], replicas: int, stage: int) -> list[int]:
    """Return the numbers that each replica gives to each gather after the optimizer's step."""
    if stage in (1, 2):
        return [padded(group, ALIGNMENT * replicas) // replicas for group in _groups(held)]
    small = (p.numbers for p in held if stage == 3 and p.numbers <= PERSISTENT)
    return [padded(numbers, replicas) // replicas for numbers in small]


def encoded_bytes(spec: str, slices: Sequence[int], whole: bool, shapes: Shapes) -> int:
    """Return the bytes that the first rank sends for a message of tensors of ``shapes``, once.

    ``slices`` are the numbers that each rank sums; ``whole``: all ranks need all sums.
    """
    from caat.compression.codec import Linear
    from caat.compression.spec import make_codec

    codec, others = make_codec(spec), len(slices) - 1
    if codec.way == "linear":
        assert isinstance(codec, Linear)
        numbers = _numbers(slices, whole, shapes)
        padding = numbers - sum(map(prod, shapes))
        codec.shapes = [*shapes, (padding,)] if padding else shapes
        return sum(ring_bytes(size, len(slices)) for size in codec.summed_sizes(numbers))
    if whole and codec.way == "gathered":
        return others * codec.size(sum(slices))
    to_owners = sum(codec.size(n) for n in slices[1:] if n)
    return to_owners + (others * codec.size(slices[0]) if whole else 0)


def _numbers(slices: Sequence[int], whole: bool, shapes: Shapes) -> int:
    """Return the numbers of a message of a linear codec; only ``whole`` messages include the padding."""
    return sum(slices) if whole else sum(map(prod, shapes))


def _groups(held: Sequence[Parameter]) -> list[int]:
    """Return the numbers of each optimizer group."""
    return [sum(p.numbers for p in group) for group in optimizer_groups(held)]


@dataclass(frozen=True)
class GatheredWeights:
    """Bytes of the weights that stage 3 gathers, by phase.

    Small weights are not partitioned and are gathered once, after the optimizer's ``step``. Each ``forward``
    pass gathers the others. A weight whose next use, in the backward pass, is too far away is released in
    between and gathered again for the ``backward`` pass. Full activation checkpointing moves the uses of a
    block closer together, which is ignored here: it only affects models of more than 500 M parameters.
    """

    step: int
    forward: int
    backward: int

    @staticmethod
    def of(held: Sequence[Parameter], replicas: int, precision: str) -> GatheredWeights:
        size = 2 if precision == "bf16" else WIDE
        step = forward = backward = later = 0
        for parameter in reversed(held):
            whole = size * padded(parameter.numbers, replicas)
            if parameter.numbers <= PERSISTENT:
                step += whole
            else:
                forward += whole
                # All later weights are used twice, in forward and backward, before this one is used again.
                # The model's own forward pass reads the head, so DeepSpeed keeps a tied one all along.
                backward += whole if 2 * later >= LIVE and not parameter.tied else 0
            later += parameter.numbers
        return GatheredWeights(step, forward, backward)

    def in_passes(self, accumulation: int) -> int:
        return accumulation * (self.forward + self.backward)

    def in_a_step(self, accumulation: int) -> int:
        return self.step + self.in_passes(accumulation)


def padded(numbers: int, multiple: int) -> int:
    """Round ``numbers`` up to a multiple of ``multiple``."""
    return -(-numbers // multiple) * multiple
