"""Each link of a schedule as a queue, with a thread at either end and no barrier between steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from threading import Condition, Thread
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from caat.topology.chunks import Ranges
from caat.topology.schedule import Schedule

# Messages of a link that are in flight: enough that the next one starts without a gap.
DEPTH = 3
# Chunk, piece.
Key = tuple[int, int]


class _Message(NamedTuple):
    """A piece that waits until ``after`` messages of the same piece were applied on this rank.

    ``after`` is the number in earlier steps for a message to send, and the place in order for one to receive.
    """

    key: Key
    after: int
    tag: int
    reduce: bool


class Queues:
    """The queues of this rank for one run of a schedule. ``data`` [n] holds the result, with the chunks at
    ``ranges``.

    A receiver applies the messages of a piece in the order of steps, then of senders. A sender sends in the
    order of steps. So the earliest message that is not applied never waits for a later one, and none waits
    forever.
    """

    def __init__(
        self,
        schedule: Schedule,
        data: Tensor,
        ranges: Ranges,
        group: dist.ProcessGroup | None,
        pieces: int,
    ) -> None:
        self.data, self.ranges, self.group = data, ranges, group
        self.out: dict[int, list[_Message]] = defaultdict(list)
        self.inn: dict[int, list[_Message]] = defaultdict(list)
        self.pieces, self.applied = pieces, defaultdict[Key, int](int)
        self.ready, self.failures = Condition(), list[BaseException]()
        self._fill(schedule, dist.get_rank(group))

    def _fill(self, schedule: Schedule, rank: int) -> None:
        for number, (move, need, place) in enumerate(schedule.order()):
            if rank == move.source:
                queue, after = self.out[move.target], need
            elif rank == move.target:
                queue, after = self.inn[move.source], place
            else:
                continue
            for piece in range(self.pieces):
                key, tag = (move.chunk, piece), number * self.pieces + piece
                if self._view(key).numel():
                    queue.append(_Message(key, after, tag, move.reduce))

    def _view(self, key: Key) -> Tensor:
        chunk, piece = key
        start, end = self.ranges[chunk]
        edges = (start + (end - start) * i // self.pieces for i in (piece, piece + 1))
        return self.data[slice(*edges)]

    def run(self) -> None:
        """Send and receive all messages. Raise the error of the first thread that fails."""
        # Before any send: gloo announces a receive on the connection that carries the data, where the
        # announcement would wait behind what is being sent.
        posted = {peer: self._post(peer, queue) for peer, queue in self.inn.items()}
        threads = [Thread(target=self._guarded, args=(self._send, *each)) for each in self.out.items()]
        threads += [Thread(target=self._guarded, args=(self._receive, *each)) for each in posted.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _post(self, peer: int, queue: list[_Message]) -> list[tuple[dist.Work, Tensor, _Message]]:
        into = [torch.empty_like(self._view(m.key)) if m.reduce else self._view(m.key) for m in queue]
        operations = [
            dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=peer, tag=message.tag)
            for tensor, message in zip(into, queue, strict=True)
        ]
        works = dist.batch_isend_irecv(operations) if operations else []
        return list(zip(works, into, queue, strict=True))

    def _send(self, peer: int, queue: list[_Message]) -> None:
        flying: list[dist.Work] = []
        for key, after, tag, _ in queue:
            self._wait(key, after)
            operation = dist.P2POp(dist.isend, self._view(key), group=self.group, group_peer=peer, tag=tag)
            flying += dist.batch_isend_irecv([operation])
            if len(flying) == DEPTH:
                flying.pop(0).wait()
        for work in flying:
            work.wait()

    def _receive(self, peer: int, posted: list[tuple[dist.Work, Tensor, _Message]]) -> None:
        for work, tensor, (key, after, _, reduce) in posted:
            work.wait()
            if reduce:
                self._wait(key, after)
                # No other thread is at this place of the piece, so that none else adds to it.
                self._view(key).add_(tensor)
            with self.ready:
                self.applied[key] += 1
                self.ready.notify_all()

    def _wait(self, key: Key, count: int) -> None:
        """Wait until ``count`` messages of the piece are applied. Raise the error of another thread."""
        with self.ready:
            self.ready.wait_for(lambda: self.failures or self.applied[key] >= count)
            if self.failures:
                raise self.failures[0]

    def _guarded(self, work: Callable, peer: int, messages: list) -> None:
        try:
            with torch.no_grad():  # holds for one thread
                work(peer, messages)
        except BaseException as error:
            with self.ready:
                self.failures.append(error)
                self.ready.notify_all()
