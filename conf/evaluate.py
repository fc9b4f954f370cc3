"""The settings of `caat evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.cache import CacheConfig
from conf.checks import require, require_choice, require_positive
from conf.field import setting
from conf.processes import ProcessesConfig


@dataclass
class EvaluateConfig:
    """`caat evaluate`: run lm-eval benchmarks on a trained model."""

    checkpoint: str = setting(
        "???",
        "Run folder, of which the latest checkpoint is used, or checkpoint folder.",
    )
    tasks: str = setting(
        "paper",
        "Names of lm-eval tasks, separated by commas; `paper` for the seven of the CAAT-Net paper; or a "
        "folder of task files (YAML).",
    )
    limit: int | None = setting(None, "Number of documents to use from the start of each task. Default: all.")
    num_fewshot: int | None = setting(
        None,
        "Number of examples before each question. Default: the number that the task sets.",
    )
    add_bos: bool = setting(
        False,
        "Begin every context with the begin-of-text token. lm-eval's Hugging Face model does so only if "
        "the tokenizer adds it, which a SentencePiece model alone does not.",
    )
    batch: int = setting(0, "Sequences per forward pass. 0: as many as fit, depending on their length.")
    precision: str = setting("fp32", "Numeric format: fp32, fp64 or bf16.")
    cache: CacheConfig = field(default_factory=CacheConfig)
    track_online: bool = setting(
        False,
        "Also send the scores to the run's Weights & Biases project, if the run was tracked online. Check "
        "first: a run folder from somebody else names their account.",
    )
    out: str | None = setting(
        None,
        "Path of the result. Default: evaluation.json in the run folder, or next to the weights.",
    )
    launch: ProcessesConfig = field(default_factory=ProcessesConfig)

    @property
    def filename_suffix(self) -> str:
        """Return the non-default options that make scores incomparable, for the file name; else empty."""
        c, bos = self.cache, self.add_bos or None
        parts: dict[str, object] = {"limit": self.limit, "fewshot": self.num_fewshot, "bos": bos}
        if self.precision != "fp32":
            parts["precision"] = self.precision
        if c.place == "host":
            parts |= {"keep": c.keep, "index": c.index, "error": c.error}
        return "".join(f"-{name}-{value}" for name, value in parts.items() if value is not None)

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, ("fp32", "fp64", "bf16"))
        require(
            bool(self.tasks.strip("[], ")), "tasks is empty: give names of tasks or a folder, or leave it out"
        )
        require(self.batch >= 0, f"batch={self.batch} must not be negative (0: as many as fit)")
        if self.limit is not None:
            require_positive(limit=self.limit)
        if self.num_fewshot is not None:
            require(self.num_fewshot >= 0, f"num_fewshot={self.num_fewshot} must not be negative")
