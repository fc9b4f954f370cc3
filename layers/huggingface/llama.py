"""config.json of a Hugging Face Llama: what of it our models are, and what they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.checks import require
from conf.model import ModelConfig


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of ``folder``; raises ``ValueError`` if it is missing or no JSON object."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder / 'config.json'} cannot be read ({error}): give the folder of a Hugging Face Llama or "
            "a checkpoint of caat"
        ) from None
    require(isinstance(values, dict), f"{folder / 'config.json'} holds no JSON object")
    return values


def model_config(values: dict[str, Any], folder: Path) -> ModelConfig:
    """The model that the configuration ``values`` in ``folder`` describes.

    Raises ``ValueError`` for the first key whose value our models do not have.
    """
    try:
        return _model_config(values, folder)
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is not a Llama's ({error}): numbers are no numbers, or zero"
        ) from error


def _model_config(values: dict[str, Any], folder: Path) -> ModelConfig:
    def refuse_unless(fine: bool, key: str, remedy: str) -> None:
        require(fine, f"{folder / 'config.json'}: {key}={json.dumps(values.get(key))} {remedy}")

    refuse_unless(
        values.get("model_type") == "llama",
        "model_type",
        "is not known here: give a model of type llama (SmolLM, TinyLlama, Llama 1 and 2 and others are)",
    )
    try:
        layers, hidden, ffn, heads, vocab = (
            values[key]
            for key in (
                "num_hidden_layers",
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "vocab_size",
            )
        )
    except KeyError as missing:
        raise ValueError(f"{folder / 'config.json'} has no {missing}: is it a whole Llama?") from None
    rope = values.get("rope_parameters") or {}
    for key in ("rope_scaling", "rope_parameters"):
        kind = (values.get(key) or {}).get("rope_type") or (values.get(key) or {}).get("type")
        refuse_unless(
            kind in (None, "default"),
            key,
            "scales rotary positions, which our models do not: give a model without",
        )
    refuse_unless(values.get("hidden_act", "silu") == "silu", "hidden_act", "is not silu, which SwiGLU needs")
    for key in ("attention_bias", "mlp_bias"):
        refuse_unless(
            not values.get(key), key, "means biases, and our linears have none: give a model without"
        )
    refuse_unless(
        values.get("head_dim") in (None, hidden // heads),
        "head_dim",
        f"is not hidden_size / num_attention_heads = {hidden // heads}, as our models have it",
    )
    refuse_unless(
        "quantization_config" not in values,
        "quantization_config",
        "means quantised weights: convert the model they were made from",
    )
    # Defaults as in Hugging Face's LlamaConfig, whose files leave them out.
    return ModelConfig(
        name=folder.resolve().name,
        layers=layers,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        sequence=values.get("max_position_embeddings", 2048),
        vocab_size=vocab,
        rope_base=float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        init_std=values.get("initializer_range", 0.02),
    )
