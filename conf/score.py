"""The settings of `caat score`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require_choice, require_positive
from conf.field import setting
from conf.processes import ProcessesConfig


@dataclass
class ScoreConfig:
    """`caat score`: compute the log-probability of every next token."""

    checkpoint: str = setting(
        "???",
        "Run folder, of which the latest checkpoint is used, or checkpoint folder.",
    )
    tokens: str = setting("???", "File of token ids (.npy) of shape [length] or [batch, length].")
    out: str | None = setting(
        None,
        "Path of the result without its extension; .json and .npy are written. Default: scores in the "
        "run folder.",
    )
    precision: str = setting("fp32", "Numeric format: fp32, fp64 or bf16.")
    batch: int = setting(8, "Sequences per forward pass.")
    launch: ProcessesConfig = field(default_factory=ProcessesConfig)

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, ("fp32", "fp64", "bf16"))
        require_positive(batch=self.batch)
