"""The settings of `caat tokenize`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.data import DataConfig
from conf.field import setting


@dataclass
class TokenizeConfig:
    """`caat tokenize`: convert text to token shards in `out`."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str | None = setting(
        None,
        "Folder to write. Default: the folder that `caat pretrain` uses with the same settings.",
    )
