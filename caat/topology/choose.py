"""Which schedule a collective takes: the fastest one on a network, by simulation."""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import NamedTuple

from caat.topology.graph import Topology
from caat.topology.methods import make_schedule, methods_of
from caat.topology.schedule import Schedule
from caat.topology.simulate import seconds

# A chunk is sent in pieces of about PIECE bytes, so that the next node passes on its beginning early. Smaller
# pieces cost more in messages than they save. So do more messages on a link than QUEUED: where a link sends
# many chunks, the next node passes on the first of them while the others come.
PIECE, QUEUED = 2**18, 64


class Choice(NamedTuple):
    """A schedule by its method, the pieces in which each chunk is sent, and the simulated seconds."""

    method: str
    schedule: Schedule
    pieces: int
    seconds: float


@lru_cache(maxsize=256)
def best_schedule(topology: Topology, collective: str, size: float) -> Choice:
    """Return the schedule of ``collective`` with the least simulated time for a buffer of ``size`` bytes.

    Of several that are equally fast, it is the first of METHODS: all ranks choose the same one.
    """
    choices = [
        Choice(method, schedule, count := pieces(schedule, size), seconds(schedule, topology, size, count))
        for method, schedule in _schedules(topology, collective)
    ]
    return min(choices, key=lambda choice: choice.seconds)


def pieces(schedule: Schedule, size: float) -> int:
    """Return in how many pieces to send each chunk of a buffer of ``size`` bytes."""
    chunks_of_a_link = max(1, len(schedule.moves) // max(1, len(schedule.links)))
    return max(1, min(ceil(size / schedule.chunks / PIECE), QUEUED // chunks_of_a_link))


@lru_cache(maxsize=8)
def _schedules(topology: Topology, collective: str) -> list[tuple[str, Schedule]]:
    return [(method, make_schedule(topology, method, collective)) for method in methods_of(topology)]
