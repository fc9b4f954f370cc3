"""The benchmark of a KV cache in host memory."""

from __future__ import annotations

from dataclasses import dataclass

from conf.bench.link import ShapedLinkConfig
from conf.bench.single import ShapeConfig
from conf.checks import require, require_choice, require_positive
from conf.field import setting
from conf.model import ModelConfig

# Rounds before those that are timed.
WARM_UP = 2


@dataclass
class BenchCacheConfig(ShapedLinkConfig, ShapeConfig):
    """`caat bench cache`: time new tokens whose KV cache is in the memory of another host, at the other end
    of a link that this machine emulates (needs root, ip and tc). It compares fetching all of it for each
    token, cache.place=host by cache.keep, SparQ, and a cache on the device, all in float32."""

    sequence: int = setting(8192, "Tokens in the cache before the first new token.")
    batch: int = setting(1, "Sequences that are continued together.")
    vocab_size: int = setting(4096, "Number of entries of the vocabulary.")
    checkpoint: str | None = setting(
        None,
        "Run folder, or checkpoint folder, whose model decodes `text`. Default: a model of random weights "
        "with `layers`, `hidden` and so on, on random tokens; its errors say nothing about a trained one.",
    )
    text: str | None = setting(None, "Text file, of which the model of `checkpoint` reads the beginning.")
    keeps: list[int] = setting([128, 512], "Values of cache.keep to measure.")
    index: str = setting("int8", "Value of cache.index: int8 or int4.")
    sparq: int = setting(32, "Components of each key that SparQ reads, at most head_dim; 0: leave SparQ out.")
    rounds: int = setting(8, "New tokens of each variant, decoded in turn; the median is reported.")
    out: str | None = setting(
        None, "Path of the JSON; the plot is written next to it. Default: outputs/bench-cache-<time>.json."
    )

    def __post_init__(self) -> None:
        require_positive(
            rounds=self.rounds, batch=self.batch, sequence=self.sequence, vocab_size=self.vocab_size
        )
        require_choice("index", self.index, ("int4", "int8"))
        require(bool(self.keeps), "keeps=[] is empty: give one or more numbers of rows, such as [128,512]")
        for number, keep in enumerate(self.keeps):
            require(keep > 0, f"keeps: {keep} is not above 0")
            require(keep not in self.keeps[:number], f"keeps: {keep} is given twice")
        require(self.sparq >= 0, f"sparq={self.sparq} is negative: give a number of components, or 0")
        require(
            (self.checkpoint is None) == (self.text is None),
            f"checkpoint={self.checkpoint} and text={self.text}: a checkpoint needs a text, and a text a "
            "checkpoint. Give both or neither",
        )
        require(len(self.rates) == 1, f"rate={self.rate}: this benchmark measures one rate at a time")
        self.check_rates()

    @property
    def shape(self) -> ModelConfig:
        """Return the sizes of the model without a checkpoint."""
        return self.model(self.vocab_size)

    @property
    def capacity(self) -> int:
        """Tokens of each sequence: those in the cache, and the new ones of all rounds."""
        return self.sequence + self.rounds + WARM_UP

    @property
    def processes(self) -> int:
        """One decodes, the other is the memory."""
        return 2

    @property
    def device(self) -> str:
        """The hosts are namespaces of one machine, whose GPUs would share its network."""
        return "cpu"
