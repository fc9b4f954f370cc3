"""Settings of scaled rotary positions: `model.rope_scaling.*`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from conf.checks import require, require_choice, require_positive
from conf.field import default_of, setting

# The settings that each kind needs, and those that it also takes.
NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_sequence", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_sequence"),
}
TAKES = {"yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate")}


@dataclass
class RopeScalingConfig:
    """How rotary positions are stretched for sequences longer than those of the first training."""

    kind: str = setting(
        "none",
        "none, or one of Hugging Face's kinds of RoPE scaling. linear: divide all frequencies by factor. "
        "dynamic: raise the base with the length, beyond model.sequence. llama3, yarn: keep high frequencies "
        "and divide low ones by factor.",
    )
    factor: float | None = setting(None, "How much longer sequences become, at least 1.")
    original_sequence: int | None = setting(
        None, "llama3 and yarn: sequence length that the weights were trained at before scaling."
    )
    low_freq_factor: float | None = setting(
        None,
        "llama3: wavelengths above original_sequence / low_freq_factor are stretched by factor. Llama 3.1 "
        "has 1.",
    )
    high_freq_factor: float | None = setting(
        None,
        "llama3: wavelengths below original_sequence / high_freq_factor are kept. Llama 3.1 has 4.",
    )
    beta_fast: float = setting(
        32.0, "yarn: frequencies with at least this many rotations in original_sequence are kept."
    )
    beta_slow: float = setting(
        1.0, "yarn: frequencies with at most this many rotations in original_sequence are divided by factor."
    )
    attention_factor: float | None = setting(
        None, "yarn: factor of cosine and sine. Default: 0.1 ln(factor) + 1."
    )
    truncate: bool = setting(
        True, "yarn: round the range of channels between kept and divided frequencies outwards."
    )

    def __post_init__(self) -> None:
        require_choice("model.rope_scaling.kind", self.kind, tuple(NEEDS))
        needed = NEEDS[self.kind]
        for each in fields(self)[1:]:
            name, value = f"model.rope_scaling.{each.name}", getattr(self, each.name)
            require(
                value is not None or each.name not in needed,
                f"{name} is required with model.rope_scaling.kind={self.kind}: give {name}=...",
            )
            require(
                value == default_of(each) or each.name in (*needed, *TAKES.get(self.kind, ())),
                f"{name}={value} has no effect with model.rope_scaling.kind={self.kind}: leave it out",
            )
            if value is not None and each.name != "truncate":
                require_positive(**{name.replace(".", "__"): value})
        self._check_ranges()

    def _check_ranges(self) -> None:
        require(
            self.factor is None or self.factor >= 1,
            f"model.rope_scaling.factor={self.factor} must be at least 1 (1: not longer)",
        )
        require(
            self.original_sequence is None or self.original_sequence < 2**31,
            f"model.rope_scaling.original_sequence={self.original_sequence} is too large: the maximum is "
            f"{2**31 - 1:,}",
        )
        low, high = self.low_freq_factor, self.high_freq_factor
        require(
            low is None or high is None or low < high,
            f"model.rope_scaling.high_freq_factor={high} must be above "
            f"model.rope_scaling.low_freq_factor={low}",
        )
        require(
            self.beta_slow <= self.beta_fast,
            f"model.rope_scaling.beta_fast={self.beta_fast} must not be below "
            f"model.rope_scaling.beta_slow={self.beta_slow}",
        )
