"""The settings of `caat convert`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require_positive
from conf.field import setting
from conf.sync import checked_ratio


@dataclass
class ConvertParallel:
    tensor: int | None = setting(
        None,
        "Number of shards (N) of an imported Hugging Face model. Export uses the number of the checkpoint.",
    )

    def __post_init__(self) -> None:
        if self.tensor is not None:
            require_positive(parallel__tensor=self.tensor)


@dataclass
class ConvertSync:
    ratio: float | None = setting(
        None,
        "Fraction of the channels to synchronise. Default: 1, which computes the same function as the "
        "Hugging Face model.",
    )

    def __post_init__(self) -> None:
        if self.ratio is not None:
            checked_ratio(self.ratio, f"sync.ratio={self.ratio}")


@dataclass
class ConvertConfig:
    """`caat convert`: convert a Hugging Face Llama to a checkpoint of caat, or the reverse."""

    from_: str = setting(
        "???",
        "Hugging Face folder to import, or run or checkpoint of caat to export.",
    )
    to: str = setting(
        "???",
        "Folder to write, new or empty; or its URL on a store that fsspec knows, such as s3://bucket/model.",
    )
    order: str | None = setting(
        None,
        "Text, jsonl or parquet file. The channels of an imported model are ordered by their size on the "
        "start of this text, the largest first: a ratio below 1 shares the first ones. The function stays "
        "the same.",
    )
    parallel: ConvertParallel = field(default_factory=ConvertParallel)
    sync: ConvertSync = field(default_factory=ConvertSync)
