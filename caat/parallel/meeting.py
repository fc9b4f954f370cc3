"""Rounds of islands that come and go: a fresh gloo group for each, which may fail without ending a run.

Every rank of an island is in a group with the ranks in its place on the other islands. After an error, the
tensors of that round are garbage.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import AllgatherOptions, AllreduceOptions, BroadcastOptions

from caat.parallel.ledger import Ledger
from caat.parallel.lighthouse import Lighthouse, seconds
from caat.parallel.membership import LostError, RefusedError, Round, Standing
from caat.parallel.ring import ring_bytes
from conf.lighthouse import split_address

# A timeout is for a piece of a message, so that a slow link may take its time.
PIECE = 2**24
# All islands of a round have just come, so they connect quickly. Shorter than the wait for a round: an
# island whose partner stopped waiting must be back before the partner's next wait is over.
CONNECT_SECONDS = 20.0


class Meeting:
    """The rounds of one island. Each method is called on all its ranks, by one thread.

    ``lighthouse``: on the first rank. ``group``: a gloo group of the island's ranks, for this class alone;
    None if there is one rank. ``place``: of this rank in the island. Bytes that this rank sends are counted
    in :attr:`ledger`, the messages within the island are not.
    """

    def __init__(
        self, lighthouse: Lighthouse | None, group: dist.ProcessGroup | None, *, place: int, timeout: float
    ) -> None:
        from torchft import ProcessGroupGloo

        self.lighthouse, self._group, self.place, self._timeout = lighthouse, group, place, timeout
        self.ledger = Ledger()
        # Whether the thread waits for other islands, which takes a limited time.
        self.outside = False
        connect = min(CONNECT_SECONDS, timeout / 2)
        self._gloo = ProcessGroupGloo(timeout=seconds(connect))
        self._connect = connect
        self._round: Round | None = None

    def start(self, wait_for: int) -> None:
        """Come to the lighthouse, and wait for others there; raise :class:`RefusedError` if not wanted."""
        self._decided(lambda lighthouse: lighthouse.start(wait_for))

    def ask(self, standing: Standing) -> Round:
        """Return the next round. Raise :class:`LostError` or :class:`RefusedError` on all ranks.

        ``standing.mark`` is of this rank's numbers; the others get the sum over the island.
        """
        mark = torch.tensor([standing.mark])
        if self._group is not None:
            dist.all_reduce(mark, group=self._group)
        standing = replace(standing, mark=int(mark))
        self._round = self._decided(lambda lighthouse: lighthouse.ask(standing))
        return self._round

    def connect(self) -> None:
        """Form the group of the round that :meth:`ask` returned. Not collective over the island."""
        found = self._round
        assert found is not None
        if len(found.names) == 1:
            return
        with self._waiting():
            address = found.prefix.partition("/")[0]
            # Without this, torch prints a stack if the store is gone.
            socket.create_connection(split_address(address, "store"), self._connect).close()
            where = f"{found.prefix}/{self.place}"
            self._gloo.configure(where, found.names[found.place], found.place, len(found.names))

    def broadcast(self, flat: Tensor, source: int, purpose: str) -> None:
        """Give all islands the numbers ``flat`` [n], in host memory, of place ``source``."""
        options = BroadcastOptions()
        options.rootRank, options.timeout = source, seconds(self._timeout)
        found = self._taking_part()
        for piece in _pieces(flat):
            with self._waiting():
                self._gloo.broadcast([piece], options).wait()
        # gloo sends it along a tree; together the islands send this much.
        sent = flat.nbytes * (len(found.names) - 1) if found.place == source else 0
        self.ledger.count(sent, "step", purpose)

    def sum(self, flat: Tensor, purpose: str) -> None:
        """Replace ``flat`` [n], in host memory, by its sum over the islands, which get the same bits."""
        options = AllreduceOptions()
        options.timeout = seconds(self._timeout)
        for piece in _pieces(flat):
            with self._waiting():
                self._gloo.allreduce([piece], options).wait()
        self.ledger.count(ring_bytes(flat.nbytes, len(self._taking_part().names)), "step", purpose)

    def gather(self, message: Tensor, purpose: str) -> list[Tensor]:
        """Return the ``message`` [bytes], in host memory, of every island, by place."""
        size = len(self._taking_part().names)
        length = torch.tensor([len(message)])
        lengths = [int(each) for each in self._all_gather(length, size)]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(message)] = message
        arrived: list[list[Tensor]] = [[] for _ in range(size)]
        for piece in _pieces(padded):
            for parts, part in zip(arrived, self._all_gather(piece, size), strict=True):
                parts.append(part)
        self.ledger.count((length.nbytes + len(padded)) * (size - 1), "step", purpose)
        return [
            torch.cat([*parts, message[:0]])[:length] for parts, length in zip(arrived, lengths, strict=True)
        ]

    def agree(self, good: bool) -> bool:
        """Return whether the round was ``good`` on all ranks of the island."""
        agreed = torch.tensor([int(good)])
        if self._group is not None:
            dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self._group)
        return bool(agreed)

    def moved(self) -> None:
        """Note that this island makes progress: it counts as gone otherwise."""
        if self.lighthouse is not None:
            self.lighthouse.moved()

    def close(self) -> None:
        """Leave: the others need not wait for this island any more."""
        if self.lighthouse is not None:
            self.lighthouse.close()

    def _all_gather(self, piece: Tensor, size: int) -> list[Tensor]:
        options = AllgatherOptions()
        options.timeout = seconds(self._timeout)
        found = [torch.empty_like(piece) for _ in range(size)]
        with self._waiting():
            self._gloo.allgather([found], [piece], options).wait()
        return found

    def _taking_part(self) -> Round:
        assert self._round is not None
        return self._round

    def _decided(self, decide):
        """Return on all ranks what ``decide`` returns on the first; raise on all ranks what it raises."""
        box: list = [None]
        with self._waiting():
            if self.lighthouse is not None:
                try:
                    box = [decide(self.lighthouse)]
                except (LostError, RefusedError) as error:
                    box = [error]
        if self._group is not None:
            dist.broadcast_object_list(box, group_src=0, group=self._group)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.outside = True
        try:
            yield
        finally:
            self.outside = False


def _pieces(flat: Tensor) -> Sequence[Tensor]:
    return flat.split(max(1, PIECE // flat.element_size())) if flat.numel() else ()
