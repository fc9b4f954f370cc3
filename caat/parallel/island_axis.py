"""The axis of islands: messages over the slow links between sites, counted in one ledger."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from caat.parallel.collectives import Collectives, Direction
from caat.parallel.exchange import Exchange
from caat.parallel.reduction import Reduction
from caat.parallel.ring import ring_bytes
from caat.parallel.scheduled import Scheduled, ScheduledReduction
from caat.parallel.timeout import GROUP_TIMEOUT
from caat.topology.settings import Schedules
from conf.data_sync import DataSyncConfig
from conf.schedule import ScheduleSpec

# Purposes of the messages of a step. changes: of weights; momentum: the part of it that SLAMB averages; loss:
# its mean, and which steps were skipped; norm: of what an exchange changed.
ISLAND_PURPOSES = ("changes", "momentum", "loss", "norm")


class IslandAxis(Collectives):
    """Collectives over the ranks with the same place in each of M islands.

    All messages count with the bytes that this rank sends.
    """

    def __init__(
        self,
        islands: int = 1,
        group: dist.ProcessGroup | None = None,
        exchange: Exchange | None = None,
        schedules: Schedules | None = None,
    ) -> None:
        super().__init__(islands, group)
        self._exchange, self._schedules = exchange, schedules
        self._scheduled = Scheduled(schedules, group) if schedules and group else None
        # Bytes of messages of changes that are not in the ledger yet.
        self._uncounted: list[int] = []

    @staticmethod
    def create(
        rows: Sequence[list[int]], groups: Sequence[dist.ProcessGroup], mine: int, route: ScheduleSpec
    ) -> IslandAxis:
        """Create the axis of ``groups[mine]``, with ranks ``rows[mine]``. Collective over the world."""
        gloo = dist.get_backend(groups[mine]) == "gloo"
        # Changes travel in the background, in groups of their own: they must not mix with other messages.
        own = [dist.new_group(ranks, GROUP_TIMEOUT) for ranks in rows]
        ways = [[dist.new_group(ranks, GROUP_TIMEOUT) for _ in range(2)] for ranks in rows if gloo]
        exchange = Exchange(own[mine], ways[mine] if gloo else None)
        return IslandAxis(len(rows[mine]), groups[mine], exchange, Schedules.of(route, len(rows[mine])))

    def reduction(self, settings: DataSyncConfig, seed: int) -> Reduction:
        """Return a sum over the islands with the codec of ``settings`` and memories of its own."""
        assert self._exchange is not None, "one island exchanges nothing"
        if self._schedules:
            return ScheduledReduction(self._exchange, self._schedules, self._sent_changes)
        return Reduction(self._exchange, settings, self._sent_changes, seed)

    def all_reduce_large(self, message: Tensor, direction: Direction, purpose: str) -> None:
        """Sum ``message`` [n] over the islands, in place, along the schedule if there is one."""
        if self._scheduled:
            self.ledger.count(self._scheduled.all_reduce(message), direction, purpose)
        else:
            self.all_reduce(message, direction, purpose)

    def count_changes(self) -> None:
        """Count the messages of reductions that are complete.

        Called by the thread that resets the ledger: the thread of an exchange would count in any step.
        """
        sent, self._uncounted = self._uncounted, []
        for size in sent:
            self.ledger.count(size, "step", "changes")

    def _sent_changes(self, sent: int, purpose: str) -> None:
        self._uncounted.append(sent)

    def _sent_bytes(self, message: Tensor) -> int:
        return ring_bytes(message.nbytes, self.processes)
