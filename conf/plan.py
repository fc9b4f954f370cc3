"""The settings of `caat plan` beside those of `caat pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require, require_positive
from conf.gpus import Gpu, gpu_named
from conf.units import delay_seconds, memory_bytes, rate_bytes


@dataclass
class PlanConfig:
    """`caat plan`: what a run would need, before any job is queued: memory by part, bytes and seconds of a
    step by ratio, days, which layouts fit and the fastest of them. Nothing is run.

    Takes the settings of `caat pretrain` (model=, sync.*, parallel.*, zero.stage, train.*) and these."""

    # Machines.
    nodes: int = 1
    # GPUs of a node, one process each.
    gpus: int = 8
    # What they are: a100, h100, h200, b200, mi300x, l40s, 4090 and others; a wrong name lists all.
    gpu: str = "h100"
    # Memory of a GPU, as 80gb; default: that of gpu.
    memory: str | None = None
    # Share of it that is not planned with: CUDA itself, NCCL's buffers, fragments.
    spare: float = 0.1
    # Between two nodes, for each GPU, each way, as tc writes rates: 400gbit; default: that of gpu.
    link: str | None = None
    # Between two GPUs of a node; default: that of gpu.
    node_link: str | None = None
    # One way.
    delay: str = "5us"
    # What a GPU sustains in arithmetic alone, in TFLOP/s (caat bench mfu measures it); default: 40 % of the
    # peak.
    tflops: float | None = None
    # Its dense bf16 peak, for MFU, where train.peak_tflops is not given; default: that of gpu.
    peak_tflops: float | None = None
    # Ratios to compare, beside sync.ratio.
    ratios: list[float] = field(default_factory=lambda: [1.0, 0.75, 0.5, 0.25, 0.0])
    # Tokens to train on; default: train.steps of them.
    tokens: float | None = None
    # Where the JSON goes; default: outputs/plan-<time>.json.
    out: str | None = None

    def __post_init__(self) -> None:
        amounts = {"tflops": self.tflops, "peak_tflops": self.peak_tflops, "tokens": self.tokens}
        given = {name: amount for name, amount in amounts.items() if amount is not None}
        require_positive(nodes=self.nodes, gpus=self.gpus, **given)
        require(0.0 <= self.spare < 1.0, f"spare={self.spare} is outside [0, 1): it is a share of the memory")
        memory_bytes(self.hardware.memory)
        rate_bytes(self.hardware.link, "link")
        rate_bytes(self.hardware.node_link, "node_link")
        delay_seconds(self.delay)
        for ratio in self.ratios:
            require(0.0 <= ratio <= 1.0, f"ratios: {ratio} is outside [0, 1]")

    @property
    def hardware(self) -> Gpu:
        """The GPU, with what was given."""
        return gpu_named(
            self.gpu,
            memory=self.memory,
            node_link=self.node_link,
            link=self.link,
            tflops=self.tflops,
            peak_tflops=self.peak_tflops,
        )
