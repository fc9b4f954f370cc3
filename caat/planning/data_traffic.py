"""The messages of DeepSpeed (0.19) between replicas in one optimizer step, and the wait for them.

Sizes are those of full messages, as counted by :class:`~caat.parallel.data_axis.DataAxis`, and equal its
counts of gradients and weights to the byte. The few numbers of control and loss, at most 40 bytes per step,
are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caat.planning.activations import WIDE
from caat.planning.parameters import Parameter
from caat.planning.prediction import Link
from caat.planning.zero import ALIGNMENT, LIVE, PERSISTENT


def data_messages(
    held: Sequence[Parameter], replicas: int, stage: int, precision: str, accumulation: int
) -> dict[str, int]:
    """Return the bytes of a step's messages by kind of collective, for the parameters ``held`` by a process.

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
    groups = [sum(p.numbers for p in held if p.norm is norm) for norm in (False, True)]
    aligned = sum(padded(group, ALIGNMENT * replicas) for group in groups)
    # Only in this case does DeepSpeed send the optimizer's flat gradient buffer, padding included.
    sent = aligned if (stage, precision) == (1, "bf16") else numbers
    return {"all_reduce": size * sent * (accumulation if stage == 2 else 1), "all_gather": size * aligned}


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
                backward += whole if 2 * later >= LIVE else 0
            later += parameter.numbers
        return GatheredWeights(step, forward, backward)

    def in_a_step(self, accumulation: int) -> int:
        return self.step + accumulation * (self.forward + self.backward)


def padded(numbers: int, multiple: int) -> int:
    """Round ``numbers`` up to a multiple of ``multiple``."""
    return -(-numbers // multiple) * multiple


def data_seconds(messages: dict[str, int], replicas: int, link: Link) -> float:
    """Return the seconds of ``messages`` as rings: an all-reduce goes around twice, the others once."""
    seconds = 0.0
    for kind, size in messages.items():
        rounds = 2 if kind == "all_reduce" else 1
        seconds += link.all_reduce_seconds(size, replicas) * rounds / 2 if size else 0.0
    return seconds


def data_wait(
    held: Sequence[Parameter],
    replicas: int,
    stage: int,
    precision: str,
    accumulation: int,
    *,
    link: Link,
    forward: float,
    backward: float,
    layers: int,
) -> float:
    """Return the seconds of a step in which a process only waits for data-parallel messages.

    ``forward`` and ``backward`` are the seconds of arithmetic of a micro-batch. Below stage 3 DeepSpeed waits
    for every message, because its ``overlap_comm`` is off. At stage 3 it is on: weights are prefetched and
    gradients sent during the arithmetic, and only the excess is waited for. At least the share of one layer
    is exposed, because nothing hides the first weights and the last gradients.
    """
    messages = data_messages(held, replicas, stage, precision, accumulation)
    if stage < 3 or replicas == 1:
        return data_seconds(messages, replicas, link)

    def seconds(kind: str, size: int) -> float:
        return data_seconds({kind: size}, replicas, link)

    gathered = GatheredWeights.of(held, replicas, precision)
    fetched = seconds("all_gather", gathered.forward)
    reduced = seconds("reduce_scatter", messages["reduce_scatter"] // accumulation)
    again = seconds("all_gather", gathered.backward)
    each = max(fetched / layers, fetched - forward) + max(reduced / layers, reduced + again - backward)
    return seconds("all_gather", gathered.step) + accumulation * each
