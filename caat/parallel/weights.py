"""ZeRO's all-gather of updated weights: both ways at once, exact or as compressed changes.

    exact     every rank sends its weights w to all others
    changes   w~ <- w~ + Q(w - w~)           w~: the weights that all ranks hold (SDP4Bit, arXiv 2410.15526)

What Q loses of a change is part of the next one, so errors do not add up. All ranks hold the same w~; the
exact w stay in the owner's float32 master weights.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from caat.compression.messages import Encoded, Exact, Messages
from caat.compression.spec import make_codec
from caat.parallel.exchange import Exchange, Finished
from caat.parallel.reduction import Count


class WeightGather:
    """Gathers weights over the ranks of ``exchange`` with the codec ``spec``. Collective.

    The output of a gather of changes must be the one of the step before, untouched but for this rank's own
    part: it holds w~.
    """

    def __init__(self, exchange: Exchange, spec: str, count: Count) -> None:
        self.exchange, self.count = exchange, count
        self.exact = spec == "none"
        self._messages: Messages = Exact() if self.exact else Encoded(make_codec(spec), spec)
        # This rank's part of w~, by the place of the gather in the step and its length.
        self.held: dict[tuple[int, int], Tensor] = {}
        self._turn = 0

    def begin(self) -> None:
        """Begin a step. Its gathers are told apart by their order, the same in every step."""
        self._turn = 0

    @torch.no_grad()
    def start(self, out: Tensor, own: Tensor) -> dist.Work:
        """Gather ``own`` [n] of every rank into ``out`` [D n], of which ``own`` may be a part."""
        self._turn += 1
        rows, key = out.view(self.exchange.size, -1), (self._turn, own.numel())
        if not self.exact and key in self.held:
            self._gather_changes(rows, own.view(-1), key)
            return Finished()
        mine = rows[self.exchange.rank]
        if mine.data_ptr() != own.data_ptr():
            mine.copy_(own.view(-1))
        if not self.exact:
            self.held[key] = mine.clone()
        sent = [mine] * self.exchange.size
        self.count(self.exchange.sent_bytes(sent), "weights")
        return self.exchange.start(sent, list(rows))

    def _gather_changes(self, rows: Tensor, own: Tensor, key: tuple[int, int]) -> None:
        me, n, held = self.exchange.rank, len(own), self.held[key]
        message = self._messages.encode(key, own.float() - held.float())
        came = [message if r == me else torch.empty_like(message) for r in range(self.exchange.size)]
        sent = [message] * self.exchange.size
        self.exchange.start(sent, came).wait()
        self.count(self.exchange.sent_bytes(sent), "weights")
        # Only now: ``own`` may be a view of this row.
        rows[me].copy_(held)
        for row, each in zip(rows, came, strict=True):
            row.add_(self._messages.decode(each, n, torch.float32))
        held.copy_(rows[me])
