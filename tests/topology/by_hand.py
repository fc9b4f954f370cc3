"""A schedule in one process, step by step: what every node must hold, and how much each of them sends."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caat.topology.schedule import Schedule


def by_hand(schedule: Schedule, given: Sequence[Tensor], ranges: Sequence[tuple[int, int]]) -> list[Tensor]:
    """What each node holds in the end, from the tensors that they are ``given``, with chunks at ``ranges``.

    Floats are added in float32, or as they are if wider, and each sum is rounded to their own type.
    """
    data = [each.clone() for each in given]
    for step in sorted({move.step for move in schedule.moves}):
        now = [move for move in schedule.moves if move.step == step]
        cuts = [slice(*ranges[move.chunk]) for move in now]
        sent = [data[move.source][cut].clone() for move, cut in zip(now, cuts, strict=True)]
        for move, cut, values in zip(now, cuts, sent, strict=True):
            own = data[move.target]
            wide = own[cut].float() + values.float() if own.itemsize == 2 else own[cut] + values
            own[cut] = wide.to(own.dtype) if move.reduce else values
    return data


def sent_by(schedule: Schedule, node: int, ranges: Sequence[tuple[int, int]]) -> int:
    """How many numbers ``node`` sends."""
    return sum(len(range(*ranges[m.chunk])) for m in schedule.moves if m.source == node)
