"""The benchmark of the messages between replicas."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.bench.link import ShapedLinkConfig
from conf.bench.single import codecs_of
from conf.checks import require, require_choice, require_positive
from conf.data_sync import WEIGHTS_CODECS, DataSyncConfig
from conf.field import setting
from conf.model import ModelConfig


@dataclass
class ReplicaStepsConfig(ShapedLinkConfig):
    """Training steps of replicas over a shaped link, one process on one host each."""

    model: ModelConfig = field(default_factory=ModelConfig)
    replicas: int = setting(
        2, "Number of data-parallel replicas, each a process with a network namespace of its own."
    )
    micro_batch: int = setting(4, "Sequences of model.sequence tokens per micro-batch.")
    accumulation: int = setting(2, "Micro-batches per step of a replica.")
    rate: str = setting("100mbit")

    def __post_init__(self) -> None:
        require_positive(micro_batch=self.micro_batch, accumulation=self.accumulation)
        require(self.replicas > 1, f"replicas={self.replicas}: this benchmark needs at least 2 replicas")
        self.check_rates()

    @property
    def processes(self) -> int:
        """One process per replica."""
        return self.replicas

    @property
    def device(self) -> str:
        """The hosts are namespaces of one machine, whose GPUs would share its network."""
        return "cpu"

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, over all replicas."""
        return self.replicas * self.accumulation * self.micro_batch * self.model.sequence


@dataclass
class BenchDataConfig(ReplicaStepsConfig):
    """`caat bench data`: time training steps of data-parallel replicas over a slow network that this machine
    emulates (needs root, ip and tc), by the codec of their messages. All use ZeRO 1 in float32. For
    comparison: DeepSpeed's own messages, and torch's DistributedDataParallel with its PowerSGD hook."""

    codecs: list[str] = setting(
        ["none", "bfloat16", "int8", "int4", "powersgd:4", "topk:0.01"],
        "Values of data_sync.codec to measure, with their options, such as [int8,topk:0.01,index=bitmap]; "
        "none sends exact slices.",
    )
    weights_codec: str = setting(
        "auto",
        "Value of data_sync.weights_codec, for all codecs: none, bfloat16, int8 or int4. auto: the same "
        "as the codec of the gradients if it is one of these, otherwise int8.",
    )
    rounds: int = setting(10, "Steps of each variant, taken in turn; the median is reported.")
    out: str | None = setting(
        None, "Path of the JSON; the plot is written next to it. Default: outputs/bench-data-<time>.json."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(rounds=self.rounds)
        self.codecs = codecs_of(self.codecs)
        require_choice("weights_codec", self.weights_codec, ("auto", *WEIGHTS_CODECS))

    def data_sync(self, codec: str) -> DataSyncConfig:
        """Return the settings of the row of ``codec``."""
        if self.weights_codec == "auto":
            return DataSyncConfig.both(codec)
        return DataSyncConfig(codec, weights_codec=self.weights_codec)
