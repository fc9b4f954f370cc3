"""The benchmarks that run in one process, or without communication between processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from conf.checks import require, require_choice, require_positive
from conf.codec import parse_codec
from conf.field import setting
from conf.model import ModelConfig


@dataclass
class ShapeConfig:
    """The sizes of the model to measure and of its input."""

    layers: int = setting(4, "Number of transformer blocks.")
    hidden: int = setting(512, "Number of channels of the residual stream.")
    ffn: int = setting(1408, "Number of channels inside the MLP.")
    heads: int = setting(8, "Number of attention heads; there are as many key and value heads.")
    sequence: int = setting(256, "Tokens per sequence.")
    batch: int = setting(4, "Sequences per step.")

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
    """`caat bench shards`: compare the shard axis in one process with plain nn.Linear."""

    shards: int = setting(8, "Number of shards (N).")
    compile: bool = setting(False, "Also measure with train.compile. Compiling takes a while.")
    vocab_size: int = setting(4096, "Number of entries of the vocabulary.")
    precision: str = setting("fp32", "Numeric format: fp32 or bf16.")
    device: str = setting("cpu", "Device: auto, cpu or cuda.")
    rounds: int = setting(10, "Steps of each variant; the median is reported.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/bench-shards-<time>.json.")
    memory_of: int | None = setting(None, "Print the peak memory of one variant. Used by the command itself.")

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, batch=self.batch, sequence=self.sequence, shards=self.shards)
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("device", self.device, ("auto", "cpu", "cuda"))


@dataclass
class BenchTokenizeConfig:
    """`caat bench tokenize`: compare the speed with bare SentencePiece, and memory with the corpus size."""

    vocab_size: int = setting(4096, "Number of pieces of the tokenizer.")
    copies: int = setting(20, "Number of copies of the quick-start text (5 MB each) to tokenise.")
    rounds: int = setting(3, "Number of times to run each; the median is reported.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/bench-tokenize-<time>.json.")

    def __post_init__(self) -> None:
        require_positive(vocab_size=self.vocab_size, copies=self.copies, rounds=self.rounds)


@dataclass
class BenchCheckpointConfig(ShapeConfig):
    """`caat bench checkpoint`: time training with and without saving, and loading against a plain read."""

    layers: int = 8
    hidden: int = 768
    ffn: int = 2048
    batch: int = 1
    vocab_size: int = setting(4096, "Number of entries of the vocabulary.")
    shards: int = setting(8, "Number of shards (N).")
    processes: int = setting(1, "Number of processes (P), a divisor of shards.")
    threads: int | None = setting(
        None, "Threads of each process. Default: all cores, shared by the processes."
    )
    rounds: int = setting(8, "Number of pairs of intervals: one with a save, one without.")
    interval: float = setting(
        10.0,
        "Length of an interval, as a multiple of the time of a save that training waits for.",
    )
    folder: str = setting("outputs", "Folder for the temporary checkpoints, on the disk to measure.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/bench-checkpoint-<time>.json.")

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, batch=self.batch, sequence=self.sequence, shards=self.shards)
        require_positive(processes=self.processes, interval=self.interval, threads=self.threads or 1)
        require(
            self.shards % self.processes == 0,
            f"processes={self.processes} does not divide shards={self.shards}: choose a divisor",
        )
        self.model(self.vocab_size).check_shards(self.shards, "shards")


@dataclass
class BenchMfuConfig:
    """`caat bench mfu`: time a training step in one process, by shard count, and compute its MFU."""

    model: ModelConfig = field(default_factory=ModelConfig)
    shards: list[int] = setting([1, 8], "Numbers of shards (N) to measure, one row each.")
    ratio: float = setting(0.5, "Value of sync.ratio.")
    micro_batch: int = setting(4, "Sequences of model.sequence tokens per step.")
    compile: bool = setting(False, "Value of train.compile.")
    precision: str = setting("bf16", "Numeric format: fp32 or bf16.")
    device: str = setting("auto", "Device: auto, cpu or cuda.")
    peak_tflops: float | None = setting(
        None,
        "Dense peak of the device in TFLOP/s, for MFU. Needed only if the device is not in caat's table.",
    )
    rounds: int = setting(10, "Steps of each row; the median is reported.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/bench-mfu-<time>.json.")

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, micro_batch=self.micro_batch, peak_tflops=self.peak_tflops or 1)
        require(bool(self.shards), "shards=[] is empty: give one or more numbers of shards, such as [1,8]")
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
        require(0.0 <= self.ratio <= 1.0, f"ratio={self.ratio} is outside [0, 1]")


@dataclass
class BenchKernelsConfig:
    """`caat bench kernels`: count the kernels of a block's forward and backward pass on a GPU, and the bytes
    that they read and write, in units of one [tokens, hidden] tensor. Nothing is run: it needs no GPU. Rows:
    one shard, all shards in one process, and one process of several with a shard each."""

    # The GPU's kernels matter at sizes that it is for.
    OPTIONS: ClassVar[dict[str, str]] = {"model": "1.1b"}

    model: ModelConfig = field(default_factory=ModelConfig)
    shards: int = setting(8, "Number of shards (N).")
    ratio: float = setting(0.5, "Value of sync.ratio.")
    micro_batch: int = setting(4, "Sequences of model.sequence tokens per pass.")
    precision: str = setting("bf16", "Numeric format: fp32 or bf16.")
    operators: bool = setting(False, "Print a row for each operator, too.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/bench-kernels-<time>.json.")

    def __post_init__(self) -> None:
        require_positive(micro_batch=self.micro_batch, shards=self.shards)
        require_choice("precision", self.precision, ("fp32", "bf16"))
        require(0.0 <= self.ratio <= 1.0, f"ratio={self.ratio} is outside [0, 1]")
        self.model.check_shards(self.shards, "shards")


@dataclass
class BenchCodecsConfig:
    """`caat bench codecs`: measure codecs of gradients on one core or GPU: GB/s of float32 that they encode
    and decode, next to a plain copy; bytes, relative to float32; and the relative L2 norm of their error."""

    codecs: list[str] = setting(
        [
            "none",
            "bfloat16",
            "int8",
            "int4",
            "sign",
            "tern",
            "qsgd:4",
            "natural",
            "powersgd:4",
            "topk:0.01",
            "topk:0.01,index=huffman,values=int8",
            "topk:0.01,index=bloom:0.01",
            "threshold:5",
            "randomk:0.01",
        ],
        "Codecs to measure: values of data_sync.codec, with their options, such as "
        "[int8,topk:0.01,index=bitmap].",
    )
    numbers: int = setting(
        4_000_000, "Length of the message of random numbers. Has no effect with checkpoint."
    )
    checkpoint: str | None = setting(
        None,
        "Run folder, or a checkpoint folder in it: encode the gradient of its model on a micro-batch of its "
        "training text. Default: random numbers with the heavy tails of a gradient.",
    )
    device: str = setting("cpu", "Device: auto, cpu (one core) or cuda.")
    rounds: int = setting(10, "Times to encode and decode with each codec, in turn; the median is reported.")
    out: str | None = setting(
        None, "Path of the JSON; the plot is written next to it. Default: outputs/bench-codecs-<time>.json."
    )

    def __post_init__(self) -> None:
        require_positive(numbers=self.numbers, rounds=self.rounds)
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
        self.codecs = codecs_of(self.codecs)


def codecs_of(items: Sequence[str]) -> list[str]:
    """Return the codecs in a list of codecs and options: the commas of the list also separate options.

    Raises ``ValueError`` if there are none, or if one is unknown or given twice.
    """
    require(bool(items), "codecs=[] is empty: give one or more codecs, such as [none,int8]")
    codecs: list[str] = []
    for item in items:
        if codecs and re.match(r"\w+=", item):
            codecs[-1] += f",{item}"
        else:
            codecs.append(item)
    for number, codec in enumerate(codecs):
        parse_codec(codec)
        require(codec not in codecs[:number], f"codecs: {codec} is given twice")
    return codecs
