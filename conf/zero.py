"""Settings of DeepSpeed ZeRO: `zero.*`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require
from conf.field import setting


@dataclass
class ZeroConfig:
    """The stage of DeepSpeed ZeRO, which partitions training state over the data-parallel replicas."""

    stage: int = setting(
        1,
        "Stage of DeepSpeed ZeRO. 0 partitions nothing, 1 the optimizer state, 2 also the gradients, 3 "
        "also the weights. In bf16, stage 0 runs as stage 1.",
    )

    def trained(self, precision: str) -> int:
        """Return the stage that is trained in fp32 or bf16."""
        return 1 if (self.stage, precision) == (0, "bf16") else self.stage

    def __post_init__(self) -> None:
        require(self.stage in (0, 1, 2, 3), f"zero.stage={self.stage} is not known: choose 0, 1, 2 or 3")
