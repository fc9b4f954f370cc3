"""Rotary positions in config.json: `rope_parameters` of transformers, `rope_scaling` before version 5."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from caat.storage.records import Finite, Positive, Size
from conf.checks import require
from conf.model import ModelConfig
from conf.rope_scaling import NEEDS, RopeScalingConfig

# To transformers, 0 means the default.
ZeroOrMore = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Rope:
    """The value of `rope_parameters` or `rope_scaling`; ``type`` is an earlier name of ``rope_type``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Size | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_fast: ZeroOrMore | None = None
    beta_slow: ZeroOrMore | None = None
    attention_factor: Positive | None = None
    mscale: ZeroOrMore | None = None
    mscale_all_dim: ZeroOrMore | None = None
    truncate: bool = True
    partial_rotary_factor: Finite | None = None

    @property
    def kind(self) -> str:
        kind = self.rope_type or self.type or "default"
        return "none" if kind == "default" else kind

    def settings(self, sequence: int, original: int | None) -> dict[str, Any]:
        """Return the settings of this kind, with the defaults and precedence of transformers."""
        original = original or self.original_max_position_embeddings or sequence
        values: dict[str, Any] = {
            "factor": self.factor,
            "original_sequence": original,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
        }
        values = {name: value for name, value in values.items() if name in NEEDS[self.kind]}
        if self.kind != "yarn":
            return values
        factor = self.factor or sequence / original
        attention_factor = self.attention_factor
        if attention_factor is None and self.mscale and self.mscale_all_dim:
            log = math.log(max(factor, 1))
            attention_factor = (0.1 * self.mscale * log + 1) / (0.1 * self.mscale_all_dim * log + 1)
        return {
            **values,
            "factor": factor,
            "beta_fast": self.beta_fast or 32.0,
            "beta_slow": self.beta_slow or 1.0,
            "attention_factor": attention_factor,
            "truncate": self.truncate,
        }


@dataclass(frozen=True, kw_only=True)
class RopeKeys:
    """The keys of config.json about rotary positions."""

    rope_theta: Positive | None = None
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    original_max_position_embeddings: Size | None = None

    @property
    def rope(self) -> Rope:
        """The value that transformers reads: `rope_scaling`, if both are there."""
        given = (each for each in (self.rope_scaling, self.rope_parameters) if each not in (None, Rope()))
        return next(given, None) or Rope()

    @property
    def base(self) -> float | None:
        return self.rope.rope_theta or self.rope_theta

    def scaling(self, sequence: int, path: Path) -> RopeScalingConfig:
        """Return the scaling of a model with ``sequence`` positions.

        Raises ``ValueError`` if ``path``, the file, has another kind or values that do not fit together.
        """
        rope, kind = self.rope, self.rope.kind
        key = "rope_parameters" if rope is self.rope_parameters else "rope_scaling"
        known = ", ".join(name for name in NEEDS if name != "none")
        require(
            kind in NEEDS,
            f"{path}: {key}={json.dumps(kind)} is a scaling of rotary positions that caat does not support: "
            f"give a model with one of {known}, or without",
        )
        require(
            kind == "none" or rope.partial_rotary_factor in (None, 1.0),
            f"{path}: partial_rotary_factor={rope.partial_rotary_factor} rotates only some channels, which "
            "caat does not support: give a model without it",
        )
        values = rope.settings(sequence, self.original_max_position_embeddings)
        for name, value in values.items():
            require(
                value is not None or name not in NEEDS[kind],
                f"{path}: {key} is {kind} and has no {name}: give the config.json of the model",
            )
        return RopeScalingConfig(kind, **values)


def rope_json(c: ModelConfig) -> dict[str, Any]:
    """Return the keys of config.json, in the spellings of all versions of transformers."""
    s = c.rope_scaling
    scaling: dict[str, Any] = {"rope_type": "default" if s.kind == "none" else s.kind}
    for name in NEEDS[s.kind]:
        key = "original_max_position_embeddings" if name == "original_sequence" else name
        scaling[key] = getattr(s, name)
    if s.kind == "yarn":
        scaling |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow}
        if s.attention_factor is not None:
            scaling["attention_factor"] = s.attention_factor
        if not s.truncate:
            scaling["truncate"] = False
    found = {"rope_theta": c.rope_base, "rope_parameters": {**scaling, "rope_theta": c.rope_base}}
    return found if s.kind == "none" else {**found, "rope_scaling": scaling}
