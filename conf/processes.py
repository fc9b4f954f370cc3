"""Processes: how many, where, and how a model is laid out over them."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from conf.checks import require, require_choice, require_positive
from conf.field import setting


@dataclass
class ParallelConfig:
    """Shards are architecture (N), processes are deployment (P divides N)."""

    tensor: int = setting(
        8,
        "Number of shards of the model (N). With sync.ratio below 1, another N is another model.",
    )
    processes: int | None = setting(
        None,
        "Number of processes that share a replica (P). Default: as many as the world offers and N allows.",
    )

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

    processes: int = setting(
        1,
        "Number of processes to start on this node. 1 works in the calling process. Ignored under torchrun.",
    )
    device: str = setting(
        "auto",
        "Device: auto, cpu or cuda. auto takes CUDA if every process of this node can have its own GPU, "
        "else the CPU.",
    )
    backend: str = setting(
        "auto",
        "Communication backend: auto, nccl or gloo. auto is NCCL on GPUs and gloo on CPUs. With gloo, "
        "several processes can share a GPU, which is meant for trials: messages go through the host.",
    )

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

    hang_seconds: float = setting(
        600.0,
        "End the run, and name the processes that hang, if no process gets on by even a layer for this long.",
    )
    max_restarts: int = setting(
        0,
        "Number of times to restart all processes from the last checkpoint after one has died.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(launch__hang_seconds=self.hang_seconds)
        require(self.max_restarts >= 0, f"launch.max_restarts={self.max_restarts} must not be negative")
