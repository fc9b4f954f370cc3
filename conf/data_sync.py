"""Settings of the messages between replicas: `data_sync.*`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_choice
from conf.codec import parse_codec
from conf.field import setting
from conf.schedule import SCHEDULE_HELP, TOPOLOGY_HELP, ScheduleSpec

WEIGHTS_CODECS = ("none", "bfloat16", "int8", "int4")


@dataclass
class DataSyncConfig:
    """Compression and routes of gradients and weights between data-parallel replicas."""

    codec: str = setting(
        "none",
        "Codec of the gradients: none, bfloat16, int8, int4, sign, tern, qsgd:LEVELS, natural, "
        "powersgd:RANK, topk:SHARE, randomk:SHARE or threshold:MAGNITUDE; behind the last three also "
        "',index=raw|bitmap|huffman|bloom:RATE' and ',values=float32|int8|poly'.",
    )
    feedback: bool = setting(
        True,
        "Add what a biased codec lost of a gradient to the next one (error feedback). Unbiased codecs "
        "(tern, qsgd, natural) do without.",
    )
    weights_codec: str = setting(
        "none",
        "Codec of the updated weights that ZeRO 1 and 2 gather: none, bfloat16, int8 or int4. Codecs encode "
        "the change since the last step, so errors do not add up.",
    )
    schedule: str = setting(
        "none",
        "How gradients and updated weights travel: "
        + SCHEDULE_HELP.format(node="replica")
        + " ZeRO 0, and ZeRO 1 in bf16, run it as an all-reduce of the gradients. Otherwise, its sums bring "
        "gradients to their owners. Its copies gather the updated weights after the step. Weights that ZeRO "
        "3 gathers while computing, and messages of a few numbers, are left to the backend.",
    )
    topology: str | None = setting(None, TOPOLOGY_HELP.format(nodes="replicas"))

    def __post_init__(self) -> None:
        parse_codec(self.codec)
        require_choice("data_sync.weights_codec", self.weights_codec, WEIGHTS_CODECS)
        self.route.refuse_codec(self.codec)

    @property
    def route(self) -> ScheduleSpec:
        """The settings of the schedule. Raises ``ValueError`` unless they go together."""
        return ScheduleSpec("data_sync", "replicas", self.schedule, self.topology)

    def describe(self) -> str:
        """Return how messages travel, in a few words; nothing if the backend sends them as they are."""
        parts = [f"gradients in {self.codec}"] * (self.codec != "none")
        parts += [f"weights in {self.weights_codec}"] * (self.weights_codec != "none")
        parts += [f"along {self.route.describe()}"] * bool(self.route)
        return ", ".join(parts)

    @staticmethod
    def both(codec: str) -> DataSyncConfig:
        """Return ``codec`` for gradients and, where it is a codec of weights, for weights too; else int8."""
        return DataSyncConfig(codec, weights_codec=codec if codec in WEIGHTS_CODECS else "int8")

    def check_stage(self, stage: int) -> None:
        """Raise ``ValueError`` unless ZeRO ``stage`` gathers what ``weights_codec`` compresses."""
        require(
            self.weights_codec == "none" or stage in (1, 2),
            f"data_sync.weights_codec={self.weights_codec} does not go with zero.stage={stage}: only stages "
            "1 and 2 gather updated weights and keep them, so that a change can be added to them; leave "
            "data_sync.weights_codec out, or set zero.stage=1",
        )
