"""From settings to the schedules of messages, the same for training and for its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import networkx as nx

from caat.topology.choose import best_schedule, pieces
from caat.topology.chunks import Ranges, equal_chunks, owned_chunks, owners, sent_numbers
from caat.topology.graph import Topology
from caat.topology.read import topology
from caat.topology.schedule import Schedule
from caat.topology.schedule_file import read_schedule
from caat.topology.simulate import seconds
from conf.checks import require
from conf.schedule import ScheduleSpec

# bytes/s and seconds of links that name none of their own. With equal links, the fastest schedule depends on
# the size of a message relative to their product.
RATE, DELAY = 125e6, 1e-4


class Way(NamedTuple):
    """The schedule of a message, the pieces of each chunk, and where its chunks lie."""

    schedule: Schedule
    pieces: int
    ranges: Ranges
    itemsize: int
    # The network of ``schedule=auto``; a file has the links of its schedule.
    spec: ScheduleSpec

    @property
    def numbers(self) -> int:
        """The numbers of the whole message."""
        return sum(end - start for start, end in self.ranges)

    def seconds(self, rate: float, delay: float, sharers: int = 1) -> float:
        """Return the simulated seconds of ``sharers`` such messages at once, each with its part of a link.

        ``rate`` in bytes/s is that part of a link that names no rate, and ``delay`` that of one without any.
        """
        network = _network(self.spec, self.schedule, sharers * rate, delay)
        sizes = tuple(sharers * self.itemsize * (end - start) for start, end in self.ranges)
        return _simulated(self.schedule, network, sizes, self.pieces)

    def sent_bytes(self, rank: int) -> int:
        """Return the bytes that ``rank`` sends, on all its links together."""
        return sent_numbers(self.schedule, self.ranges)[rank] * self.itemsize

    @property
    def most_sent_bytes(self) -> int:
        """The bytes of the rank that sends most."""
        return max(sent_numbers(self.schedule, self.ranges).values()) * self.itemsize


@dataclass(frozen=True)
class Schedules:
    """The schedules of one axis: the halves of the all-reduce in a file, or the fastest on a network."""

    spec: ScheduleSpec
    given: Schedule | Topology

    @staticmethod
    def of(spec: ScheduleSpec, ranks: int) -> Schedules | None:
        """Return the schedules of ``spec`` between ``ranks`` ranks; None if it has none.

        Raises ``ValueError`` if a file is wrong, or is for another number of ranks.
        """
        if not spec:
            return None
        what = f"{spec.names[-1]}={spec.topology or spec.schedule}"
        try:
            given = _given(spec, spec.file.stat().st_mtime_ns if spec.file and spec.file.is_file() else 0)
        except ValueError as error:
            if spec.file is None:
                raise
            raise ValueError(f"{what}, looked for in {Path.cwd()}: {error}") from None
        number = (
            f"parallel.islands={given.nodes}" if spec.axis == "islands" else "another number of processes"
        )
        one = f"one for {ranks}, " if ranks > 1 else ""
        require(
            given.nodes == ranks,
            f"{what} is for {given.nodes} {spec.ranks}, but there {'are' if ranks > 1 else 'is'} {ranks}: "
            f"give {one}{number}, or leave {' and '.join(spec.names)} out",
        )
        return Schedules(spec, given)

    def check_owners(self, stage: int) -> None:
        """Raise ``ValueError`` unless every replica gets a part of the sums, as ZeRO ``stage`` needs."""
        if isinstance(self.given, Schedule) and stage > 0:
            lacking = sorted(set(range(self.given.nodes)) - set(owners(self.given)))
            require(
                not lacking,
                f"{self.spec.axis}.schedule={self.spec.schedule} gives replica {(lacking or [0])[0]} no sum, "
                f"but at stage {stage} of ZeRO every replica owns a part of the gradients: give another "
                "schedule, or set zero.stage=0 and train.precision=fp32",
            )

    def way(self, collective: str, numbers: int | Sequence[int], itemsize: int) -> Way:
        """Return how a message of ``numbers`` of ``itemsize`` bytes travels.

        An all-reduce has so many in all, the others so many for each rank: those that it owns.
        """
        whole = numbers if isinstance(numbers, int) else sum(numbers)
        schedule, parts = self._choose(collective, whole * itemsize)
        if isinstance(numbers, int):
            ranges = equal_chunks(numbers, schedule.chunks)
        else:
            ranges = owned_chunks(schedule, numbers)
        return Way(schedule, parts, ranges, itemsize, self.spec)

    def _choose(self, collective: str, size: int) -> tuple[Schedule, int]:
        if isinstance(self.given, Topology):
            best = best_schedule(self.given, collective, size)
            return best.schedule, best.pieces
        schedule = self.given if collective == "all-reduce" else self.given.half(collective)
        return schedule, pieces(schedule, size)


# A plan asks for the same messages for every layout and ratio.
_simulated = lru_cache(maxsize=1024)(seconds)


@lru_cache(maxsize=64)
def _network(spec: ScheduleSpec, schedule: Schedule, rate: float, delay: float) -> Topology:
    """Return the network of ``spec``, or the links that the ``schedule`` of its file uses."""
    if spec.topology is not None:
        return topology(str(spec.file or spec.topology), rate, delay)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(schedule.nodes))
    graph.add_edges_from(schedule.links, rate=rate, delay=delay)
    return Topology(spec.schedule, graph, schedule.nodes)


@lru_cache(maxsize=32)
def _given(spec: ScheduleSpec, changed: int) -> Schedule | Topology:
    """Return the network or the schedule of ``spec``; its file was ``changed`` at this time."""
    if spec.topology is None:
        assert spec.file is not None
        return read_schedule(spec.file)
    return topology(str(spec.file or spec.topology), RATE, DELAY)
