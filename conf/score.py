"""The settings of `caat score`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require_choice, require_positive
from conf.processes import ProcessesConfig


@dataclass
class ScoreConfig:
    """`caat score`: the log-probability of every next token."""

    # A run folder (its latest checkpoint) or a checkpoint folder.
    checkpoint: str = "???"
    # A .npy file of token numbers, [length] or [batch, length].
    tokens: str = "???"
    # The result's path, without extension (.json and .npy are written); default: scores in the run folder.
    out: str | None = None
    # fp32, fp64 or bf16.
    precision: str = "fp32"
    # Sequences per forward pass.
    batch: int = 8
    launch: ProcessesConfig = field(default_factory=ProcessesConfig)

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, ("fp32", "fp64", "bf16"))
        require_positive(batch=self.batch)
