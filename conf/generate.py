"""The settings of `caat generate`, and how any text is continued."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import check_seed, require, require_choice, require_positive
from conf.processes import ProcessesConfig


@dataclass
class SamplingConfig:
    """How a text is continued."""

    # Ends there if neither the end-of-text token nor a stop string comes first.
    max_new_tokens: int = 128
    # Divides the logits; 0: always the most likely token.
    temperature: float = 0.0
    # Draw among so many of the most likely tokens; 0: among all.
    top_k: int = 0
    # Draw among the fewest most likely tokens whose probabilities reach this sum.
    top_p: float = 1.0
    # Texts that end the continuation, such as ["\n\n"]; they are not in the result.
    stop: list[str] = field(default_factory=list)
    # Of what is drawn.
    seed: int = 1

    def __post_init__(self) -> None:
        require_positive(max_new_tokens=self.max_new_tokens)
        require(
            0.0 <= self.temperature < float("inf"),
            f"temperature={self.temperature} must be a number from 0 on (0: always the most likely token)",
        )
        require(self.top_k >= 0, f"top_k={self.top_k} must not be negative (0: draw among all tokens)")
        require(
            0.0 < self.top_p <= 1.0,
            f"top_p={self.top_p} is outside (0, 1]: it is the probability of the tokens to draw among",
        )
        require(
            self.temperature > 0 or (self.top_k == 0 and self.top_p == 1.0),
            "top_k and top_p say what to draw among, and at temperature=0 nothing is drawn: "
            "give temperature=1",
        )
        require(all(self.stop), "stop holds an empty text, which is everywhere: leave it out")
        check_seed(self.seed)


@dataclass
class GenerateConfig(SamplingConfig):
    """`caat generate`: texts continued by a trained model."""

    # A run folder (its latest checkpoint) or a checkpoint folder.
    checkpoint: str = "???"
    # The text to continue; an empty one begins a new document.
    prompt: str | None = None
    # A file with several, each line a JSON string: "Once upon a time".
    prompts: str | None = None
    # The result's path; default: generations.json in the run folder, or beside the weights.
    out: str | None = None
    # fp32, fp64 or bf16.
    precision: str = "fp32"
    # Prompts that are continued together.
    batch: int = 8
    launch: ProcessesConfig = field(default_factory=ProcessesConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("precision", self.precision, ("fp32", "fp64", "bf16"))
        require_positive(batch=self.batch)
        require(
            (self.prompt is None) != (self.prompts is None),
            'give either prompt="a text" or prompts=FILE, each line of it a JSON string',
        )
