"""Processes: how many, where, and how a model is laid out over them."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from conf.checks import require, require_choice, require_positive


@dataclass
class ParallelConfig:
    """Shards are architecture (N), processes are deployment (P divides N)."""

    # N: shards of the model. With sync.ratio below 1, another N is another model.
    tensor: int = 8
    # P: processes that share one replica; default as many as the world offers and N allows.
    processes: int | None = None

    def __post_init__(self) -> None:
        require_positive(parallel__tensor=self.tensor)
        if self.processes is not None:
            require_positive(parallel__processes=self.processes)
            require(
                self.tensor % self.processes == 0,
                f"parallel.processes={self.processes} does not divide parallel.tensor={self.tensor}: "
                "every process holds the same number of shards",
            )

    def tensor_processes(self, world: int) -> int:
        """P for a world of ``world`` processes; raises ``ValueError`` if the world is not a multiple."""
        processes = self.processes or gcd(self.tensor, world)
        require(
            world % processes == 0,
            f"{world} processes cannot be cut into replicas of parallel.processes={processes}: "
            "start a multiple of it, or leave parallel.processes out",
        )
        return processes


@dataclass
class ProcessesConfig:
    """Who does the work."""

    # Processes to start on this node. 1 works in the calling process. Ignored under torchrun.
    processes: int = 1
    # auto takes CUDA where every process of this node can have a GPU of its own, else the CPU.
    device: str = "auto"
    # auto sends over NCCL on GPUs and over gloo on CPUs. gloo lets several processes share a GPU: for trying
    # things out, since its messages go through the host.
    backend: str = "auto"

    def __post_init__(self) -> None:
        require_positive(launch__processes=self.processes)
        require_choice("launch.device", self.device, ("auto", "cpu", "cuda"))
        require_choice("launch.backend", self.backend, ("auto", "nccl", "gloo"))
        require(
            not (self.device == "cpu" and self.backend == "nccl"),
            "launch.backend=nccl needs launch.device=cuda: on CPUs it is gloo",
        )


@dataclass
class LaunchConfig(ProcessesConfig):
    """Who trains, and what becomes of those that hang or die."""

    # A run in which no process gets on, by as much as a layer, for so long is ended, and who hangs is named.
    hang_seconds: float = 600.0
    # After a process died: start all of them again from the last checkpoint, so many times.
    max_restarts: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(launch__hang_seconds=self.hang_seconds)
        require(self.max_restarts >= 0, f"launch.max_restarts={self.max_restarts} must not be negative")
