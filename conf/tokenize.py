"""The settings of `caat tokenize`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.data import DataConfig
from conf.field import setting


@dataclass
class TokenizeConfig:
    """`caat tokenize`: text to token shards in `out`."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str | None = setting(
        None,
        "Folder to write. Default: the one that `caat pretrain` would use for the same settings.",
    )
