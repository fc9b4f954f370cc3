"""The benchmarks of communication, and of generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from conf.bench.link import ShapedLinkConfig
from conf.bench.single import ShapeConfig
from conf.cache import CacheConfig
from conf.checks import require, require_choice, require_positive
from conf.field import setting
from conf.gpus import Gpu, gpu_named
from conf.message_cost import MessageCostConfig
from conf.model import ModelConfig
from conf.processes import ParallelConfig
from conf.sync import WIRE_FORMATS
from conf.units import check_link, delay_seconds, rate_bytes


@dataclass
class BenchStackConfig(ShapeConfig):
    """Settings that the communication benchmarks share. They time a stack of transformer blocks."""

    precision: str = setting("fp32", "Numeric format: fp32 or bf16.")
    processes: int = setting(2, "Number of processes (P), and of shards.")
    ratios: list[float] = setting(
        [1.0, 0.5, 0.25],
        "Fractions of the channels to synchronise, in addition to full synchronisation.",
    )
    wire_dtypes: list[str] = setting(
        [],
        "Values of sync.wire_dtype to measure in addition to auto, such as [int8] or [int8,bfloat16]: "
        "one more row per ratio, with overlap.",
    )
    rounds: int = setting(15, "Steps of each variant, taken in turn; the median is reported.")
    device: str = setting("auto", "Device: auto, cpu or cuda.")
    backend: str = setting(
        "auto", "Communication backend: auto, nccl or gloo. With gloo, the processes may share a GPU."
    )
    out: str | None = setting(
        None,
        "Path of the JSON; the plot is written next to it. Default: outputs/bench-<benchmark>-<time>.json.",
    )

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, batch=self.batch, sequence=self.sequence)
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
        require_choice("backend", self.backend, ("auto", "nccl", "gloo"))
        require(self.processes > 1, f"processes={self.processes}: this benchmark needs at least 2 processes")
        for ratio in self.ratios:
            require(0.0 <= ratio <= 1.0, f"ratios: {ratio} is outside [0, 1]")
        for dtype in self.wire_dtypes:
            require_choice("wire_dtypes", dtype, tuple(WIRE_FORMATS))
        self.shape.check_shards(self.processes, "processes")

    @property
    def shape(self) -> ModelConfig:
        """Return the model's sizes. The stack has no vocabulary, so ``vocab_size`` is set to ``hidden``."""
        return self.model(vocab_size=self.hidden)


@dataclass
class BenchStepConfig(BenchStackConfig):
    """`caat bench step`: time and bytes of a step on this machine's network, by ratio, with and without
    overlap, compared with full synchronisation as in Megatron and with no communication at all."""


@dataclass
class BenchProfileConfig(BenchStackConfig):
    """`caat bench profile`: profile the same steps with torch's profiler (GEMMs, copies, the rest) and
    measure the memory that they keep for the backward pass."""

    rounds: int = 5


@dataclass
class BenchLinkConfig(ShapedLinkConfig, BenchStackConfig):
    """`caat bench link`: time the same steps over a shaped link between network namespaces (needs root, ip
    and tc)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rates()


@dataclass
class BenchPeersConfig(BenchStackConfig):
    """`caat bench peers`: time the same blocks, sizes and data with torch's parallelize_module,
    megatron-core's linears (if installed: the extra "peers"), DeepSpeed AutoTP and DeepSpeed-Domino (needs
    two sequences, and two heads per process), compared with caat at ratio 1 and below."""

    ratios: list[float] = setting([1.0, 0.5])
    rate: str | None = setting(
        None,
        "Rate of a shaped link to measure over, as in `caat bench link`. Default: measure on this machine's "
        "network.",
    )
    delay: str = setting("0ms", "One-way delay of the shaped link.")
    burst: str = setting("128kb", "Bytes that may be sent at once above the rate.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rate is not None or (self.delay, self.burst) == ("0ms", "128kb"),
            f"delay={self.delay} and burst={self.burst} describe a shaped link: give its rate=1gbit as well",
        )
        if self.rate is not None:
            check_link(self.rate, self.delay, self.burst)


@dataclass
class BenchGenerateConfig(BenchPeersConfig):
    """`caat bench generate`: time to the first token of `batch` prompts of `sequence` tokens, and new tokens
    per second, by ratio, compared with full synchronisation as in Megatron and with no communication."""

    ratios: list[float] = setting([1.0, 0.5, 0.25])
    new_tokens: int = setting(16, "Tokens in the continuation of each prompt.")
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(new_tokens=self.new_tokens)


@dataclass
class BenchPredictConfig(MessageCostConfig):
    """`caat bench predict`: predict step time by ratio from FLOPs, bytes and a link's rate and delay.

    A step is one forward and backward pass of a replica on parallel.processes (default: parallel.tensor)
    processes. Nothing is run.
    """

    # The tiny model's communication times say nothing about a real run.
    OPTIONS: ClassVar[dict[str, str]] = {"model": "7b"}

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    ratios: list[float] = setting(
        [0.75, 0.5, 0.25, 0.0],
        "Fractions of the channels to synchronise, in addition to full synchronisation.",
    )
    gpu: str = setting(
        "h100",
        "GPU of each process, as in `caat plan`: a100, h100, h200, b200, mi300x, 4090 and others.",
    )
    link: str | None = setting(
        None,
        "Rate between two processes per direction: 400gbit. Default: the GPU's rate between nodes.",
    )
    delay: str = setting("5us", "One-way delay of the link.")
    tflops: float | None = setting(
        None,
        "TFLOP/s that a process sustains without communication. Default: 40 % of the GPU's peak.",
    )
    micro_batch: int = setting(1, "Sequences of model.sequence tokens per pass.")
    precision: str = setting("bf16", "Numeric format of the activations: bf16 or fp32.")
    wire_dtype: str = setting("auto", "Value of sync.wire_dtype. The time of rounding is not predicted.")
    out: str | None = setting(
        None,
        "Path of the JSON; the plot is written next to it. Default: outputs/bench-predict-<time>.json.",
    )

    def __post_init__(self) -> None:
        rate_bytes(self.hardware.link, "link")
        delay_seconds(self.delay)
        self.check_message_cost()
        require_positive(micro_batch=self.micro_batch, tflops=1 if self.tflops is None else self.tflops)
        require(
            self.parallel.islands == 1,
            f"parallel.islands={self.parallel.islands} has no effect on a step of one replica: leave it "
            "out, or use caat plan",
        )
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("wire_dtype", self.wire_dtype, ("auto", *WIRE_FORMATS))
        for ratio in self.ratios:
            require(0.0 <= ratio <= 1.0, f"ratios: {ratio} is outside [0, 1]")

    @property
    def hardware(self) -> Gpu:
        """Return the GPU named ``gpu``, with ``link`` and ``tflops`` replaced where given."""
        return gpu_named(self.gpu, link=self.link, tflops=self.tflops)
