"""ZeRO's all-gather of updated weights: both ways at once, exact or as compressed changes.

    exact     every rank sends its weights w to all others
    changes   w~ <- w~ + Q(w - w~)           w~: the weights that all ranks hold (SDP4Bit, arXiv 2410.15526)

What Q loses of a change is part of the next one, so errors do not add up. All ranks hold the same w~; the
exact w stay in the owner's float32 master weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from caat.compression.messages import Encoded, Exact, Messages
from caat.compression.spec import make_codec
from caat.parallel.exchange import Exchange, Finished
from caat.parallel.reduction import Count
from caat.parallel.scheduled import Scheduled
from caat.parallel.seconds import Seconds
from caat.topology.settings import Schedules


class WeightGather:
    """Gathers weights over the ranks of ``exchange`` with the codec ``spec``. Collective.

    They travel along ``schedules``; without them, from every rank to every other.

    :attr:`seconds` adds up the host's time in the phases encode, wire and decode of changes.
    """

    def __init__(
        self, exchange: Exchange, spec: str, count: Count, schedules: Schedules | None = None
    ) -> None:
        self.exchange, self.count = exchange, count
        self._scheduled = Scheduled(schedules, exchange.group) if schedules else None
        self.exact = spec == "none"
        self.seconds = Seconds()
        self._messages: Messages = Exact() if self.exact else Encoded(make_codec(spec), spec)
        # This rank's parts of the gathered weights, and copies of them that change only in a gather: w~.
        self._parts: list[Tensor] = []
        self.held: list[Tensor] = []

    @torch.no_grad()
    def hold(self, parts: Sequence[Tensor]) -> None:
        """Start from weights that all ranks agree on; ``parts`` are this rank's, flat and live."""
        if not self.exact:
            self._parts = list(parts)
            self.held = [part.detach().clone() for part in parts]

    @torch.no_grad()
    def start(self, out: Tensor, own: Tensor) -> dist.Work:
        """Gather ``own`` [n] of every rank into ``out`` [D n], of which it may be a part.

        A gather of changes needs an ``out`` that still holds the weights of the last gather.
        """
        rows = out.view(self.exchange.size, -1)
        mine = rows[self.exchange.rank]
        if not self.exact:
            self._gather_changes(rows, own.view(-1), self._held(own))
            return Finished()
        if mine.data_ptr() != own.data_ptr():
            mine.copy_(own.view(-1))
        return self._spread(rows)

    def _spread(self, rows: Tensor) -> dist.Work:
        """Give this rank's row to all ranks, and count what that sends."""
        if self._scheduled:
            self.count(self._scheduled.all_gather(rows), "weights")
            return Finished()
        sent = [rows[self.exchange.rank]] * self.exchange.size
        self.count(self.exchange.sent_bytes(sent), "weights")
        return self.exchange.start(sent, list(rows))

    def _held(self, own: Tensor) -> Tensor:
        """Return w~ of ``own``, a range of one of the parts."""
        for part, held in zip(self._parts, self.held, strict=True):
            start = (own.data_ptr() - part.data_ptr()) // part.itemsize
            if start >= 0 and start + own.numel() <= part.numel():
                return held[start : start + own.numel()]
        raise AssertionError("DeepSpeed gathers weights that are not in its partitions")

    def _gather_changes(self, rows: Tensor, own: Tensor, held: Tensor) -> None:
        me, n = self.exchange.rank, len(own)
        with self.seconds.timed("encode"):
            message = self._messages.encode("weights", own.float() - held.float())
        came = message.new_empty(self.exchange.size, len(message))
        came[me] = message
        with self.seconds.timed("wire"):
            self._spread(came).wait()
        with self.seconds.timed("decode"):
            # Only now: ``own`` may be a view of this row.
            held.add_(self._messages.decode(message, n, torch.float32))
            rows[me].copy_(held)
            for r, each in enumerate(came):
                if r != me:
                    rows[r].add_(self._messages.decode(each, n, torch.float32))
