"""The time of a schedule on a network, with contention and without barriers: what the executor does.

- Each pair of nodes that exchanges messages has a queue, in the order of steps. Its first message enters the
  network once the sender has received all that it waits for, and the message before it has left the sender's
  link.
- Each direction of a link carries one message at a time, at its full rate, in the order of arrival.
- A message over several hops takes the network's route, and each link of it for its whole size. Switches and
  nodes on the way forward packets as they come (cut-through): a link begins as soon as the first of them
  arrives, and ends no earlier than the link before.
- Additions, copies and the start of a message take no time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from caat.topology.graph import Pair, Topology
from caat.topology.schedule import Schedule


class _Message(NamedTuple):
    """One piece of a chunk. It leaves when its sender has applied ``need`` messages of that piece.

    It is number ``place`` among those of the piece that its target applies.
    """

    chunk: int
    piece: int
    need: int
    place: int


def seconds(schedule: Schedule, topology: Topology, size: float | Sequence[float], pieces: int = 1) -> float:
    """Return the seconds of the schedule, each chunk sent in ``pieces``.

    ``size`` is the bytes of each chunk, or of a buffer of equal chunks.
    """
    assert schedule.nodes == topology.nodes and pieces >= 1
    chunks = [size / schedule.chunks] * schedule.chunks if isinstance(size, int | float) else size
    return _Run(_queues(schedule, pieces), topology, [each / pieces for each in chunks]).seconds()


def _queues(schedule: Schedule, pieces: int) -> dict[Pair, list[_Message]]:
    queues: dict[Pair, list[_Message]] = defaultdict(list)
    for move, need, place in schedule.order():
        queues[move.source, move.target] += [_Message(move.chunk, j, need, place) for j in range(pieces)]
    return queues


class _Run:
    """One simulation, by events in the order of time. ``sizes`` are the bytes of a message, by chunk."""

    def __init__(
        self, queues: dict[Pair, list[_Message]], topology: Topology, sizes: Sequence[float]
    ) -> None:
        self.queues, self.topology, self.sizes = queues, topology, sizes
        self.next = dict.fromkeys(queues, 0)
        self.free: dict[Pair, float] = defaultdict(float)
        # By (node, chunk, piece): messages applied, places that came too early, queues that wait.
        self.applied: dict[tuple[int, int, int], int] = defaultdict(int)
        self.early: dict[tuple[int, int, int], set[int]] = defaultdict(set)
        self.waiting: dict[tuple[int, int, int], list[Pair]] = defaultdict(list)
        # (time, number, queue, message, hop, when its last byte is there); a hop of -1: the queue may go on.
        self.events: list[tuple[float, int, Pair, _Message | None, int, float]] = []
        self.count = 0

    def seconds(self) -> float:
        end = 0.0
        for pair in self.queues:
            self._enter(pair, 0.0)
        while self.events:
            now, _, pair, message, hop, last = heappop(self.events)
            if message is None:
                self._enter(pair, now)
            elif hop == len(self.topology.route(*pair)):
                end = max(end, now)
                self._arrive(pair, message, now)
            else:
                self._forward(pair, message, hop, (now, last))
        assert all(self.next[pair] == len(queue) for pair, queue in self.queues.items()), (
            "a message never left"
        )
        return end

    def _add(
        self, time: float, pair: Pair, message: _Message | None, hop: int = -1, last: float = 0.0
    ) -> None:
        self.count += 1
        heappush(self.events, (time, self.count, pair, message, hop, last))

    def _enter(self, pair: Pair, now: float) -> None:
        """Let the first message of the queue leave, or wait for what it needs."""
        if self.next[pair] == len(self.queues[pair]):
            return
        message = self.queues[pair][self.next[pair]]
        key = (pair[0], message.chunk, message.piece)
        if self.applied[key] < message.need:
            self.waiting[key].append(pair)
            return
        self.next[pair] += 1
        self._add(now, pair, message, 0, now)

    def _forward(self, pair: Pair, message: _Message, hop: int, came: tuple[float, float]) -> None:
        """Take the link number ``hop``; the first byte and the last one ``came`` at these times."""
        link = self.topology.route(*pair)[hop]
        start = max(came[0], self.free[link])
        end = max(start + self.sizes[message.chunk] / self.topology.rate(link), came[1])
        self.free[link], delay = end, self.topology.delay(link)
        if hop == 0:
            self._add(end, pair, None)
        arrives = hop + 1 == len(self.topology.route(*pair))
        self._add((end if arrives else start) + delay, pair, message, hop + 1, end + delay)

    def _arrive(self, pair: Pair, message: _Message, now: float) -> None:
        """Apply the message, in its place, and wake the queues that wait for its piece."""
        key = (pair[1], message.chunk, message.piece)
        self.early[key].add(message.place)
        while self.applied[key] in self.early[key]:
            self.early[key].remove(self.applied[key])
            self.applied[key] += 1
        for other in self.waiting.pop(key, ()):
            self._enter(other, now)
