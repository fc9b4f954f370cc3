"""The settings of `caat generate` and of sampling."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.cache import CacheConfig
from conf.checks import check_seed, require, require_choice, require_positive
from conf.field import setting
from conf.processes import ProcessesConfig


@dataclass
class SamplingConfig:
    """Settings of sampling."""

    max_new_tokens: int = setting(
        128,
        "Maximum number of new tokens. The end-of-text token or a stop string ends the continuation earlier.",
    )
    temperature: float = setting(
        0.0,
        "Divisor of the logits. 0: always take the most likely token.",
    )
    top_k: int = setting(0, "Sample from this many of the most likely tokens. 0: sample from all.")
    top_p: float = setting(
        1.0,
        "Sample from the smallest set of most likely tokens whose probabilities reach this sum.",
    )
    stop: list[str] = setting(
        [],
        'Strings that end the continuation, such as ["\\n\\n"]. They are not in the result.',
    )
    seed: int = setting(1, "Seed of the samples.")

    def __post_init__(self) -> None:
        require_positive(max_new_tokens=self.max_new_tokens)
        require(
            0.0 <= self.temperature < float("inf"),
            f"temperature={self.temperature} must be finite, not negative (0: always the most likely token)",
        )
        require(self.top_k >= 0, f"top_k={self.top_k} must not be negative (0: sample from all tokens)")
        require(
            0.0 < self.top_p <= 1.0,
            f"top_p={self.top_p} is outside (0, 1]: it is the total probability of the tokens to sample from",
        )
        require(
            self.temperature > 0 or (self.top_k == 0 and self.top_p == 1.0),
            "top_k and top_p have no effect with temperature=0, which always takes the most likely token: "
            "set temperature=1",
        )
        require(all(self.stop), "stop contains an empty string, which would match everywhere: leave it out")
        check_seed(self.seed)


@dataclass
class GenerateConfig(SamplingConfig):
    """`caat generate`: continue texts with a trained model."""

    checkpoint: str = setting(
        "???",
        "Run folder, of which the latest checkpoint is used, or checkpoint folder.",
    )
    prompt: str | None = setting(None, "Text to continue. An empty one begins a new document.")
    prompts: str | None = setting(
        None,
        'File with several prompts, each line a JSON string: "Once upon a time".',
    )
    add_bos: bool = setting(
        True,
        "Begin every prompt with the begin-of-text token, as documents do in training. Give false for an "
        "imported model whose own tokenizer does not add it, such as SmolLM2.",
    )
    out: str | None = setting(
        None,
        "Path of the result. Default: generations.json in the run folder, or next to the weights.",
    )
    precision: str = setting("fp32", "Numeric format: fp32, fp64 or bf16.")
    batch: int = setting(8, "Number of prompts to continue together.")
    cache: CacheConfig = field(default_factory=CacheConfig)
    launch: ProcessesConfig = field(default_factory=ProcessesConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("precision", self.precision, ("fp32", "fp64", "bf16"))
        require_positive(batch=self.batch)
        require(
            (self.prompt is None) != (self.prompts is None),
            'give either prompt="a text" or prompts=FILE, a file with one JSON string per line',
        )
