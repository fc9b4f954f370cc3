"""The settings of `caat plan` beside those of `caat pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require, require_positive
from conf.units import delay_seconds, memory_bytes, rate_bytes


@dataclass
class PlanConfig:
    """`caat plan`: what a run would need, before any job is queued: memory by part, bytes and seconds of a
    step by ratio, days, and which layouts fit. Nothing is run.

    Takes the settings of `caat pretrain` (model=, sync.*, parallel.*, zero.stage, train.*) and these."""

    nodes: int = 1
    # GPUs of a node, one process each.
    gpus: int = 8
    # Memory of a GPU.
    memory: str = "80gb"
    # Share of it that is not planned with: CUDA itself, NCCL's buffers, fragments.
    spare: float = 0.1
    # Between two nodes, for each GPU, each way; as tc writes rates.
    link: str = "400gbit"
    # Between two GPUs of a node.
    node_link: str = "3600gbit"
    # One way.
    delay: str = "5us"
    # What a GPU sustains in arithmetic alone, in TFLOP/s (caat bench mfu measures it).
    tflops: float = 400.0
    # Its peak, for MFU, where train.peak_tflops is not given: an H100's in bf16.
    peak_tflops: float = 989.0
    # Ratios to compare, beside sync.ratio.
    ratios: list[float] = field(default_factory=lambda: [1.0, 0.75, 0.5, 0.25, 0.0])
    # Tokens to train on; default: train.steps of them.
    tokens: float | None = None
    # Where the JSON goes; default: outputs/plan-<time>.json.
    out: str | None = None

    def __post_init__(self) -> None:
        require_positive(nodes=self.nodes, gpus=self.gpus, tflops=self.tflops, peak_tflops=self.peak_tflops)
        require_positive(tokens=1 if self.tokens is None else self.tokens)
        require(0.0 <= self.spare < 1.0, f"spare={self.spare} is outside [0, 1): it is a share of the memory")
        memory_bytes(self.memory)
        rate_bytes(self.link, "link")
        rate_bytes(self.node_link, "node_link")
        delay_seconds(self.delay)
        for ratio in self.ratios:
            require(0.0 <= ratio <= 1.0, f"ratios: {ratio} is outside [0, 1]")
