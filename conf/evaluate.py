"""The settings of `caat evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require, require_choice, require_positive
from conf.processes import ProcessesConfig


@dataclass
class EvaluateConfig:
    """`caat evaluate`: benchmarks of lm-eval on a trained model."""

    # A run folder (its latest checkpoint) or a checkpoint folder.
    checkpoint: str = "???"
    # Names of lm-eval's tasks, separated by commas; `paper`: the seven of the CAAT-Net paper; or a folder of
    # task files (YAML).
    tasks: str = "paper"
    # Only the first so many documents of each task.
    limit: int | None = None
    # Examples in front of each question; default: as the task says.
    num_fewshot: int | None = None
    # Begin every context with the begin-of-text token. lm-eval's Hugging Face model does so only where the
    # tokenizer adds it, which a SentencePiece model alone does not.
    add_bos: bool = False
    # Sequences per forward pass; 0: as many as fit, by their length.
    batch: int = 0
    # fp32, fp64 or bf16.
    precision: str = "fp32"
    # Send the scores to the run's Weights & Biases as well, if that was online: a run folder that comes from
    # somebody else names their account.
    track_online: bool = False
    # The result's path; default: evaluation.json in the run folder, or beside the weights.
    out: str | None = None
    launch: ProcessesConfig = field(default_factory=ProcessesConfig)

    @property
    def asked_otherwise(self) -> str:
        """What makes scores that are not to be put beside others', as part of a file name; else empty."""
        parts = {"limit": self.limit, "fewshot": self.num_fewshot, "bos": self.add_bos or None}
        return "".join(f"-{name}-{value}" for name, value in parts.items() if value is not None)

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, ("fp32", "fp64", "bf16"))
        require(
            bool(self.tasks.strip("[], ")), "tasks is empty: give names of tasks, a folder, or leave it out"
        )
        require(self.batch >= 0, f"batch={self.batch} must not be negative (0: as many as fit)")
        if self.limit is not None:
            require_positive(limit=self.limit)
        if self.num_fewshot is not None:
            require(self.num_fewshot >= 0, f"num_fewshot={self.num_fewshot} must not be negative")
