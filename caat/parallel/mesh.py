"""The mesh of processes: N shards of the model on P processes, times replicas, times islands."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from caat.parallel.collectives import Collectives
from caat.parallel.data_axis import DataAxis
from caat.parallel.island_axis import IslandAxis
from caat.parallel.priority import sums_first, wake_gloo_first
from caat.parallel.sums import SumOptions
from caat.parallel.tape import Tape
from caat.parallel.timeout import GROUP_TIMEOUT
from conf.data_sync import DataSyncConfig
from conf.islands import IslandsConfig
from conf.schedule import ScheduleSpec


@dataclass(frozen=True)
class Mesh:
    """The position of this process in the mesh.

    A replica has ``shards`` (N) tensor-parallel shards on ``processes`` (P) consecutive ranks, each of which
    holds ``local`` = N / P of them. An island has ``data_size`` replicas, which train on different sequences
    and sum their gradients. Each of ``islands.processes`` islands has consecutive ranks.
    """

    shards: int
    processes: int = 1
    tensor_rank: int = 0
    data_rank: int = 0
    tensor: Collectives = field(default_factory=lambda: Collectives(1, None))
    data: DataAxis = field(default_factory=DataAxis)
    island: int = 0
    islands: IslandAxis = field(default_factory=IslandAxis)
    tape: Tape = field(default_factory=Tape)

    @staticmethod
    def create(
        shards: int,
        processes: int,
        options: SumOptions | None = None,
        *,
        islands: int = 1,
        data_sync: DataSyncConfig | None = None,
        island_route: ScheduleSpec | None = None,
        seed: int = 0,
    ) -> Mesh:
        """Build the groups over the initialised world; every rank must call it with the same arguments.

        ``island_route`` says how large messages between islands travel. ``seed`` is that of the random draws
        of gradient codecs.

        Raises ``ValueError`` unless ``islands`` divides the world, and ``processes`` divides the shards and
        an island.
        """
        world, rank = dist.get_world_size(), dist.get_rank()
        if world % islands:
            raise ValueError(f"{islands} islands do not divide the world size {world}")
        where = "size of an island" if islands > 1 else "world size"
        for name, value in (("shards", shards), (where, world // islands)):
            if value % processes:
                raise ValueError(f"{processes} tensor-parallel processes do not divide the {name} {value}")
        # Ranks by island, replica of the island, and process of the replica.
        ranks = torch.arange(world).view(islands, -1, processes)
        island, data_rank, tensor_rank = (int(i) for i in (ranks == rank).nonzero()[0])

        def groups(rows: list[list[int]]) -> list[dist.ProcessGroup]:
            # new_group is collective over the world: every rank creates every group and keeps its own. It
            # writes into the options, so that each group needs options of its own.
            backend = dist.get_backend()
            return [
                dist.new_group(row, GROUP_TIMEOUT, pg_options=sums_first(backend, GROUP_TIMEOUT))
                for row in rows
            ]

        replicas = ranks.flatten(0, 1).tolist()
        columns = ranks.mT.flatten(0, 1).tolist()
        across = ranks.flatten(1).T.tolist()
        place = data_rank * processes + tensor_rank
        tensor = Collectives(processes, groups(replicas)[rank // processes], options)
        column = island * processes + tensor_rank
        data = DataAxis.create(columns, groups(columns), column, data_sync or DataSyncConfig(), seed)
        route = island_route or IslandsConfig().route
        island_axis = IslandAxis.create(across, groups(across), place, route) if islands > 1 else IslandAxis()
        wake_gloo_first()
        return Mesh(shards, processes, tensor_rank, data_rank, tensor, data, island, island_axis)

    @property
    def data_size(self) -> int:
        """Number of data-parallel replicas of an island."""
        return self.data.processes

    @property
    def replica(self) -> int:
        """Number of this replica among those of all islands."""
        return self.island * self.data_size + self.data_rank

    @property
    def replicas(self) -> int:
        """Number of replicas of all islands."""
        return self.islands.processes * self.data_size

    @property
    def local(self) -> int:
        """Shards held by this process: r = N / P."""
        return self.shards // self.processes

    @property
    def local_shards(self) -> range:
        """Numbers of the shards held by this process."""
        return range(self.tensor_rank * self.local, (self.tensor_rank + 1) * self.local)
