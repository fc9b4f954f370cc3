"""The settings of `caat tokenize`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.data import DataConfig


@dataclass
class TokenizeConfig:
    """`caat tokenize`: text to token shards in `out`."""

    data: DataConfig = field(default_factory=DataConfig)
    # The folder to write; default: the one `caat pretrain` would use for the same settings.
    out: str | None = None
