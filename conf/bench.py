"""The settings of `caat bench`, one class a benchmark; each documents itself by `caat bench WHAT --help`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from conf.checks import require, require_choice, require_positive
from conf.gpus import Gpu, gpu_named
from conf.model import ModelConfig
from conf.processes import ParallelConfig
from conf.sync import WIRE_FORMATS
from conf.units import delay_seconds, rate_bytes


@dataclass
class ShapeConfig:
    """A model made for measuring: its sizes, and those of its input."""

    # Transformer blocks.
    layers: int = 4
    # Channels of the residual stream.
    hidden: int = 512
    # Channels inside the MLP.
    ffn: int = 1408
    # Heads of attention, as many of keys and values.
    heads: int = 8
    # Tokens of a sequence.
    sequence: int = 256
    # Sequences a step.
    batch: int = 4

    def model(self, vocab_size: int) -> ModelConfig:
        return ModelConfig(
            layers=self.layers,
            hidden=self.hidden,
            ffn=self.ffn,
            heads=self.heads,
            kv_heads=self.heads,
            sequence=self.sequence,
            vocab_size=vocab_size,
        )


@dataclass
class BenchShardsConfig(ShapeConfig):
    """`caat bench shards`: the shard axis in one process against plain nn.Linear."""

    # N.
    shards: int = 8
    # Also with train.compile, which takes a while to begin with.
    compile: bool = False
    # Entries of the vocabulary.
    vocab_size: int = 4096
    # fp32 or bf16.
    precision: str = "fp32"
    # auto, cpu or cuda.
    device: str = "cpu"
    # Steps of each variant; the median counts.
    rounds: int = 10
    # Where the JSON goes; default: outputs/bench-shards-<time>.json.
    out: str | None = None
    # Used by the command itself: print the peak memory of one variant.
    memory_of: int | None = None

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, batch=self.batch, sequence=self.sequence, shards=self.shards)
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("device", self.device, ("auto", "cpu", "cuda"))


@dataclass
class BenchTokenizeConfig:
    """`caat bench tokenize`: speed against bare SentencePiece, memory against the size of the corpus."""

    # Pieces of the tokenizer.
    vocab_size: int = 4096
    # Copies of the quick-start text (5 MB each) to tokenise.
    copies: int = 20
    # Times that each is run; the median counts.
    rounds: int = 3
    # Where the JSON goes; default: outputs/bench-tokenize-<time>.json.
    out: str | None = None

    def __post_init__(self) -> None:
        require_positive(vocab_size=self.vocab_size, copies=self.copies, rounds=self.rounds)


@dataclass
class BenchCheckpointConfig(ShapeConfig):
    """`caat bench checkpoint`: training with and without saving, and loading against reading the bytes."""

    layers: int = 8
    hidden: int = 768
    ffn: int = 2048
    batch: int = 1
    # Entries of the vocabulary.
    vocab_size: int = 4096
    # N.
    shards: int = 8
    # P; it divides N.
    processes: int = 1
    # Of each process; default: all cores, shared by the processes.
    threads: int | None = None
    # Pairs of an interval with a save and one without.
    rounds: int = 8
    # The interval is so many times what a save takes when training waits for it.
    interval: float = 10.0
    # Where the checkpoints go for a while: the disk that is measured.
    folder: str = "outputs"
    # Where the JSON goes; default: outputs/bench-checkpoint-<time>.json.
    out: str | None = None

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, batch=self.batch, sequence=self.sequence, shards=self.shards)
        require_positive(processes=self.processes, interval=self.interval, threads=self.threads or 1)
        require(
            self.shards % self.processes == 0,
            f"processes={self.processes} do not divide shards={self.shards}: choose a divisor",
        )
        self.model(self.vocab_size).check_shards(self.shards)


@dataclass
class BenchMfuConfig:
    """`caat bench mfu`: a training step in one process, by shard count, as a share of the device's peak."""

    model: ModelConfig = field(default_factory=ModelConfig)
    # N, one row each.
    shards: list[int] = field(default_factory=lambda: [1, 8])
    # As sync.ratio.
    ratio: float = 0.5
    # Sequences of model.sequence tokens a step.
    micro_batch: int = 4
    # As train.compile.
    compile: bool = False
    # fp32 or bf16.
    precision: str = "bf16"
    # auto, cpu or cuda.
    device: str = "auto"
    # Dense peak of the device; default: known for common GPUs, else no MFU is shown.
    peak_tflops: float | None = None
    # Steps of each row; the median counts.
    rounds: int = 10
    # Where the JSON goes; default: outputs/bench-mfu-<time>.json.
    out: str | None = None

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, micro_batch=self.micro_batch, peak_tflops=self.peak_tflops or 1)
        require(bool(self.shards), "shards=[] measures nothing: give a number of shards or several, [1,8]")
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
        require(0.0 <= self.ratio <= 1.0, f"ratio={self.ratio} is outside [0, 1]")


@dataclass
class BenchStackConfig(ShapeConfig):
    """A stack of transformer blocks, forward and backward: what is common to the communication benchmarks."""

    # fp32 or bf16.
    precision: str = "fp32"
    # P, with as many shards.
    processes: int = 2
    # Fractions of the channels to synchronise, beside full synchronisation.
    ratios: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.25])
    # As sync.wire_dtype, beside auto: one more row for each ratio, overlapped. [int8], [int8,bfloat16].
    wire_dtypes: list[str] = field(default_factory=list)
    # Steps of each variant, in turns; the median counts.
    rounds: int = 15
    # auto, cpu or cuda.
    device: str = "auto"
    # Where the JSON goes, the plot beside it; default: outputs/bench-<benchmark>-<time>.json.
    out: str | None = None

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, batch=self.batch, sequence=self.sequence)
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
        require(
            self.processes > 1, f"processes={self.processes} must be at least 2: one has nobody to talk to"
        )
        for ratio in self.ratios:
            require(0.0 <= ratio <= 1.0, f"ratios: {ratio} is outside [0, 1]")
        for dtype in self.wire_dtypes:
            require_choice("wire_dtypes", dtype, tuple(WIRE_FORMATS))
        self.shape.check_shards(self.processes)

    @property
    def shape(self) -> ModelConfig:
        """Its head is as wide as the stream: there is no vocabulary."""
        return self.model(vocab_size=self.hidden)


@dataclass
class BenchStepConfig(BenchStackConfig):
    """`caat bench step`: time and bytes of a step on this machine's own network, by ratio, with and without
    overlap, beside full synchronisation in Megatron's form and no communication at all."""


@dataclass
class BenchProfileConfig(BenchStackConfig):
    """`caat bench profile`: what torch's profiler sees of the same steps (GEMMs, copies, the rest) and what
    they keep for backward."""

    rounds: int = 5


def check_link(rate: str, delay: str, burst: str) -> None:
    """Raise ``ValueError`` unless all are as tc writes them."""
    rate_bytes(rate)
    delay_seconds(delay)
    require(
        re.fullmatch(r"\d+(\.\d+)?[kmg]?b", burst) is not None,
        f"burst={burst} is not a size of tc: write 128kb or 1mb",
    )


@dataclass
class BenchLinkConfig(BenchStackConfig):
    """`caat bench link`: the same between network namespaces joined by a shaped link (root, ip and tc)."""

    # One rate or several, as tc writes them: 1gbit, or 100mbit,1gbit,10gbit.
    rate: str = "1gbit"
    # One-way delay, as tc writes it: 0ms, 1ms, ...
    delay: str = "0ms"
    # What may pass at once above the rate. Small, or short messages never meet the rate.
    burst: str = "128kb"

    def __post_init__(self) -> None:
        super().__post_init__()
        for rate in self.rates:
            check_link(rate, self.delay, self.burst)

    @property
    def rates(self) -> list[str]:
        return [rate.strip() for rate in self.rate.strip("[]").split(",")]


@dataclass
class BenchPeersConfig(BenchStackConfig):
    """`caat bench peers`: the same blocks, sizes and data in torch's parallelize_module, megatron-core's
    linears (if installed: the extra "peers"), DeepSpeed AutoTP and DeepSpeed-Domino (needs two sequences,
    and two heads a process), beside ours at ratio 1 and below."""

    ratios: list[float] = field(default_factory=lambda: [1.0, 0.5])
    # Over a shaped link of this rate, as in `caat bench link`; default: this machine's own network.
    rate: str | None = None
    # One way.
    delay: str = "0ms"
    # What may pass at once above the rate.
    burst: str = "128kb"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rate is not None or (self.delay, self.burst) == ("0ms", "128kb"),
            f"delay={self.delay} burst={self.burst} are of a shaped link: give its rate=1gbit as well",
        )
        if self.rate is not None:
            check_link(self.rate, self.delay, self.burst)


@dataclass
class BenchGenerateConfig(BenchPeersConfig):
    """`caat bench generate`: time to the first token of `batch` prompts of `sequence` tokens, and new tokens
    per second, by ratio, beside full synchronisation in Megatron's form and no communication at all."""

    ratios: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.25])
    # Tokens of each prompt's continuation.
    new_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(new_tokens=self.new_tokens)


@dataclass
class BenchPredictConfig:
    """`caat bench predict`: step time by ratio from FLOPs, bytes and a link's rate and delay; nothing is run.

    One forward and backward pass of a replica on parallel.processes (default: parallel.tensor) processes.
    """

    # A real model: communication of the tiny one means nothing.
    OPTIONS: ClassVar[dict[str, str]] = {"model": "7b"}

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    # Fractions of the channels to synchronise, beside full synchronisation.
    ratios: list[float] = field(default_factory=lambda: [0.75, 0.5, 0.25, 0.0])
    # What the processes compute on, as in `caat plan`: a100, h100, h200, b200, mi300x, 4090 and others.
    gpu: str = "h100"
    # Between any two processes, each way, as 400gbit; default: between two nodes of such GPUs.
    link: str | None = None
    # One way.
    delay: str = "5us"
    # What a process sustains in arithmetic alone, in TFLOP/s; default: 40 % of the GPU's peak.
    tflops: float | None = None
    # Sequences of model.sequence tokens a pass.
    micro_batch: int = 1
    # Of the activations: bf16 or fp32.
    precision: str = "bf16"
    # As sync.wire_dtype. What rounding takes is not predicted.
    wire_dtype: str = "auto"
    # Where the JSON goes, the plot beside it; default: outputs/bench-predict-<time>.json.
    out: str | None = None

    def __post_init__(self) -> None:
        rate_bytes(self.hardware.link, "link")
        delay_seconds(self.delay)
        require_positive(micro_batch=self.micro_batch, tflops=1 if self.tflops is None else self.tflops)
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("wire_dtype", self.wire_dtype, ("auto", *WIRE_FORMATS))
        for ratio in self.ratios:
            require(0.0 <= ratio <= 1.0, f"ratios: {ratio} is outside [0, 1]")

    @property
    def hardware(self) -> Gpu:
        """The GPU, with what was given."""
        return gpu_named(self.gpu, link=self.link, tflops=self.tflops)
