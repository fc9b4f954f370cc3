"""Settings of the processes: `launch.*`, and how a model is laid out over them: `parallel.*`."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from conf.checks import require, require_choice, require_positive
from conf.field import setting


@dataclass
class ParallelConfig:
    """The number of shards (N) is part of the architecture, the number of processes (P, divides N) is not.

    The processes are split into islands, an island into replicas, and a replica has P of them.
    """

    tensor: int = setting(
        8,
        "Number of shards of the model (N). With sync.ratio below 1, a different N is a different model.",
    )
    processes: int | None = setting(
        None,
        "Number of processes that share a replica (P). Default: the greatest common divisor of N and the "
        "number of processes of an island.",
    )
    islands: int = setting(
        1,
        "Number of islands (M): groups of replicas that exchange gradients at every step among themselves, "
        "and with other islands only changes of weights every islands.every steps.",
    )

    def __post_init__(self) -> None:
        require_positive(parallel__tensor=self.tensor, parallel__islands=self.islands)
        if self.processes is not None:
            require_positive(parallel__processes=self.processes)
            require(
                self.tensor % self.processes == 0,
                f"parallel.processes={self.processes} does not divide parallel.tensor={self.tensor}: "
                "every process holds the same number of shards",
            )

    def tensor_processes(self, world: int) -> int:
        """Return P for ``world`` processes. Raise ``ValueError`` unless islands and P divide them."""
        require(
            world % self.islands == 0,
            f"{world} processes cannot be split into parallel.islands={self.islands} equal islands: start a "
            "multiple of it",
        )
        island = world // self.islands
        processes = self.processes or gcd(self.tensor, island)
        require(
            island % processes == 0,
            f"{island} processes{' of an island' if self.islands > 1 else ''} cannot be cut into replicas of "
            f"parallel.processes={processes}: start a multiple of it, or leave parallel.processes out",
        )
        return processes


@dataclass
class ProcessesConfig:
    """The processes of a command and their device."""

    processes: int = setting(
        1,
        "Number of processes to start on this node. 1 runs in the calling process. Ignored under torchrun.",
    )
    device: str = setting(
        "auto",
        "Device: auto, cpu or cuda. auto takes CUDA if every process of this node can have its own GPU, "
        "else the CPU.",
    )
    backend: str = setting(
        "auto",
        "Communication backend: auto, nccl or gloo. auto is NCCL on GPUs and gloo on CPUs. With gloo, "
        "several processes can share a GPU. Meant for tests: messages go through the host.",
    )

    def __post_init__(self) -> None:
        require_positive(launch__processes=self.processes)
        require_choice("launch.device", self.device, ("auto", "cpu", "cuda"))
        require_choice("launch.backend", self.backend, ("auto", "nccl", "gloo"))
        require(
            not (self.device == "cpu" and self.backend == "nccl"),
            "launch.backend=nccl needs launch.device=cuda: CPUs use gloo",
        )


@dataclass
class LaunchConfig(ProcessesConfig):
    """The processes that train, and what happens when one hangs or dies."""

    hang_seconds: float = setting(
        600.0,
        "Seconds without progress on any rank before the run is aborted and the hanging ranks are reported.",
    )
    max_restarts: int = setting(
        0,
        "Number of times to restart all processes from the last checkpoint after a process has died.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(launch__hang_seconds=self.hang_seconds)
        require(self.max_restarts >= 0, f"launch.max_restarts={self.max_restarts} must not be negative")
