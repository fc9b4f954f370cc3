"""The mesh of processes: N shards of the model on P processes, times data parallelism."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.distributed as dist

from caat.parallel.collectives import Collectives
from caat.parallel.data_axis import DataAxis
from caat.parallel.priority import sums_first, wake_gloo_first
from caat.parallel.sums import SumOptions
from caat.parallel.tape import Tape
from caat.parallel.timeout import GROUP_TIMEOUT
from conf.data_sync import DataSyncConfig


@dataclass(frozen=True)
class Mesh:
    """The position of this process in the mesh.

    A replica has ``shards`` (N) tensor-parallel shards on ``processes`` (P) consecutive ranks, each of which
    holds ``local`` = N / P of them; ``data_size`` replicas train on different sequences.
    """

    shards: int
    processes: int = 1
    tensor_rank: int = 0
    data_rank: int = 0
    tensor: Collectives = field(default_factory=lambda: Collectives(1, None))
    data: DataAxis = field(default_factory=DataAxis)
    tape: Tape = field(default_factory=Tape)

    @staticmethod
    def create(
        shards: int,
        processes: int,
        options: SumOptions | None = None,
        *,
        data_sync: DataSyncConfig | None = None,
        seed: int = 0,
    ) -> Mesh:
        """Build the groups over the initialised world; every rank must call it with the same arguments.

        ``seed`` is that of the random draws of gradient codecs.

        Raises ``ValueError`` unless ``processes`` divides both ``shards`` and the world.
        """
        world, rank = dist.get_world_size(), dist.get_rank()
        for name, value in (("shards", shards), ("world size", world)):
            if value % processes:
                raise ValueError(f"{processes} tensor-parallel processes do not divide the {name} {value}")
        # new_group is collective over the world: every rank creates every group and keeps its own.
        rows = [list(range(first, first + processes)) for first in range(0, world, processes)]
        pg_options = sums_first(dist.get_backend(), GROUP_TIMEOUT)
        tensor_groups = [dist.new_group(ranks, GROUP_TIMEOUT, pg_options=pg_options) for ranks in rows]
        columns = list(map(list, zip(*rows, strict=True)))
        data_groups = [dist.new_group(ranks, GROUP_TIMEOUT, pg_options=pg_options) for ranks in columns]
        data_rank, tensor_rank = divmod(rank, processes)
        data = DataAxis.create(columns, data_groups, tensor_rank, data_sync or DataSyncConfig(), seed)
        wake_gloo_first()
        return Mesh(
            shards,
            processes,
            tensor_rank,
            data_rank,
            Collectives(processes, tensor_groups[data_rank], options),
            data,
        )

    @property
    def data_size(self) -> int:
        """Number of data-parallel replicas."""
        return self.data.processes

    @property
    def local(self) -> int:
        """Shards held by this process: r = N / P."""
        return self.shards // self.processes

    @property
    def local_shards(self) -> range:
        """Numbers of the shards held by this process."""
        return range(self.tensor_rank * self.local, (self.tensor_rank + 1) * self.local)
