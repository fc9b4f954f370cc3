"""The settings of `caat convert`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require_positive
from conf.sync import checked_ratio


@dataclass
class ConvertParallel:
    # N: shards to cut a Hugging Face model into. A checkpoint of caat brings its own.
    tensor: int | None = None

    def __post_init__(self) -> None:
        if self.tensor is not None:
            require_positive(parallel__tensor=self.tensor)


@dataclass
class ConvertSync:
    # Fraction of the channels to synchronise; default: 1, at which the function is the Hugging Face model's.
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None:
            checked_ratio(self.ratio, f"sync.ratio={self.ratio}")


@dataclass
class ConvertConfig:
    """`caat convert`: a Hugging Face Llama to a checkpoint of caat, or such a checkpoint to Hugging Face."""

    # A Hugging Face folder, or a run or checkpoint of caat: what it is decides what it becomes.
    from_: str = "???"
    # The folder to write, new or empty.
    to: str = "???"
    parallel: ConvertParallel = field(default_factory=ConvertParallel)
    sync: ConvertSync = field(default_factory=ConvertSync)
