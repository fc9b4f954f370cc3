"""The settings that `caat plan` has in addition to those of `caat pretrain`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_positive
from conf.field import setting
from conf.gpus import Gpu, gpu_named
from conf.message_cost import MessageCostConfig
from conf.units import delay_seconds, memory_bytes, rate_bytes


@dataclass
class PlanConfig(MessageCostConfig):
    """`caat plan`: predict what a run needs before you queue a job: memory by part, bytes and seconds of a
    step by ratio, days, the layouts that fit and the fastest of them. Nothing is run.

    `caat plan budget=100e9` designs a datacenter instead; `caat plan budget --help` lists its settings.

    Accepts the settings of `caat pretrain` (model=, sync.*, parallel.*, zero.stage, train.*) and these."""

    nodes: int = setting(1, "Number of nodes.")
    gpus: int = setting(8, "Number of GPUs per node, one process each.")
    gpu: str = setting(
        "h100",
        "GPU: a100, h100, h200, b200, mi300x, l40s, 4090 and others. An unknown name lists all.",
    )
    memory: str | None = setting(None, "Memory of a GPU, such as 80gb. Default: the value in caat's table.")
    spare: float = setting(
        0.1,
        "Fraction of the memory that the plan leaves free for CUDA itself, NCCL's buffers and fragmentation.",
    )
    link: str | None = setting(
        None,
        "Rate between two nodes per GPU and direction, in tc's notation: 400gbit. Default: the value in "
        "caat's table.",
    )
    node_link: str | None = setting(
        None, "Rate between two GPUs of a node. Default: the value in caat's table."
    )
    delay: str = setting("5us", "One-way delay of the links.")
    topology: str | None = setting(
        None,
        "Network between the replicas, in the order of their numbers: torus:8x8, or a JSON file. Messages "
        "take the schedule that training takes, the fastest at 1 Gbit/s and 0.1 ms where the file has no "
        "others, and its time with link and delay for these links. Short for data_sync.schedule=auto "
        "data_sync.topology=.",
    )
    island_link: str | None = setting(
        None,
        "Rate of the link between two islands per direction, shared by the processes of an island, such as "
        "1gbit. Default: the links of the GPUs of one node together.",
    )
    island_delay: str | None = setting(
        None, "One-way delay of the link between islands, such as 20ms. Default: delay."
    )
    waiting: float = setting(
        0.02,
        "Fraction of the time that may be spent waiting for other islands: the plan says how fast a link "
        "that needs.",
    )
    tflops: float | None = setting(
        None,
        "TFLOP/s that a GPU sustains without communication; caat bench mfu measures it. Default: 40 % of "
        "the peak.",
    )
    gemm: float | None = setting(
        None,
        "Fraction of the peak that products of matrices reach, in place of tflops: other kernels and the "
        "optimizer step then take as long as their bytes in the GPU's memory. 0.67 fits what others measured "
        "on A100s.",
    )
    memory_rate: float | None = setting(
        None, "Rate of a GPU's memory in GB/s, for gemm. Default: the value in caat's table."
    )
    peak_tflops: float | None = setting(
        None,
        "Dense bf16 peak of a GPU in TFLOP/s, for MFU, if train.peak_tflops is not given. Default: the "
        "value in caat's table.",
    )
    ratios: list[float] = setting(
        [1.0, 0.75, 0.5, 0.25, 0.0],
        "Ratios to compare, in addition to sync.ratio.",
    )
    tokens: float | None = setting(None, "Number of tokens to train on. Default: those of train.steps steps.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/plan-<time>.json.")

    def __post_init__(self) -> None:
        amounts = {"tflops": self.tflops, "peak_tflops": self.peak_tflops, "tokens": self.tokens}
        amounts |= {"memory_rate": self.memory_rate}
        given = {name: amount for name, amount in amounts.items() if amount is not None}
        require_positive(nodes=self.nodes, gpus=self.gpus, **given)
        require(0.0 <= self.spare < 1.0, f"spare={self.spare} is outside [0, 1): it is a fraction of memory")
        require(
            0.0 < self.waiting < 1.0,
            f"waiting={self.waiting} is outside (0, 1): it is a fraction of the time",
        )
        if self.gemm is not None:
            require(0.0 < self.gemm <= 1.0, f"gemm={self.gemm} is outside (0, 1]: it is a fraction of peak")
            require(
                self.tflops is None,
                f"gemm={self.gemm} and tflops={self.tflops} both say how fast a GPU computes: give one",
            )
        else:
            require(
                self.memory_rate is None,
                f"memory_rate={self.memory_rate} has no effect without gemm, the share of a GPU's peak that "
                "products reach: give gemm=0.67, or leave memory_rate out",
            )
        memory_bytes(self.hardware.memory)
        rate_bytes(self.hardware.link, "link")
        rate_bytes(self.hardware.node_link, "node_link")
        delay_seconds(self.delay)
        self.check_message_cost()
        if self.island_link is not None:
            rate_bytes(self.island_link, "island_link")
        if self.island_delay is not None:
            delay_seconds(self.island_delay, "island_delay")
        for ratio in self.ratios:
            require(0.0 <= ratio <= 1.0, f"ratios: {ratio} is outside [0, 1]")

    @property
    def hardware(self) -> Gpu:
        """Return the GPU named ``gpu``, with the values that were given in place of those in the table."""
        return gpu_named(
            self.gpu,
            memory=self.memory,
            memory_rate=self.memory_rate,
            node_link=self.node_link,
            link=self.link,
            tflops=self.tflops,
            peak_tflops=self.peak_tflops,
        )
