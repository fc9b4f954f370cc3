"""The benchmark of the exchanges between islands."""

from __future__ import annotations

from dataclasses import dataclass

from conf.bench.data import ReplicaStepsConfig
from conf.bench.single import codecs_of
from conf.checks import require, require_positive
from conf.field import setting


@dataclass
class BenchIslandsConfig(ReplicaStepsConfig):
    """`caat bench islands`: time training steps of islands of one replica at ZeRO 1 in float32 over a shaped
    link between network namespaces (needs root, ip and tc), compared with replicas that sum their gradients
    at every step, in DeepSpeed's own messages and through codecs. diloco with AdamW, also with a delay and
    eager; slamb with LAMB; dcs3gd with SGD. With torchft installed, its DiLoCo too, without ZeRO."""

    every: int = setting(30, "Value of islands.every; a round of so many steps is timed as a whole.")
    island_delay: int = setting(
        5, "Value of islands.delay of the row with a delay, which has the last codec, like those after it."
    )
    codecs: list[str] = setting(
        ["none", "int8"], "Values of islands.codec, and of data_sync.codec of the synchronous rows."
    )
    accumulation: int = setting(1)
    rounds: int = setting(2, "Rounds of each variant, taken in turn; the median is reported.")
    out: str | None = setting(
        None, "Path of the JSON; the plot is written next to it. Default: outputs/bench-islands-<time>.json."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(rounds=self.rounds, every=self.every)
        require(
            0 < self.island_delay < self.every,
            f"island_delay={self.island_delay} is outside (0, every={self.every})",
        )
        self.codecs = codecs_of(self.codecs)
