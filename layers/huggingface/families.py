"""Read config.json of a Hugging Face model and reject the settings that our models do not support."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from caat.storage.records import Positive, Size, Whole, parse_record, read_record
from caat.training.checkpoint.rope import RopeKeys
from conf.checks import require
from conf.model import ModelConfig, head_dim_setting


@dataclass(frozen=True)
class Kind:
    """The fields of config.json that tell which kind of model it describes."""

    model_type: str = ""
    caat: Any = None
    auto_map: Any = None

    @property
    def exported(self) -> bool:
        """Whether `caat convert` exported it below ratio 1, together with model code."""
        # Earlier versions exported model_type "caat".
        return self.model_type == "caat" or (self.caat is not None and self.auto_map is not None)


@dataclass(frozen=True, kw_only=True)
class Llama(RopeKeys):
    """The keys that our models depend on, with the defaults of `transformers`, which omits them in files.

    Subclasses are other families, with their own defaults.
    """

    # Whether query, key and value have biases, and attention's output has none.
    query_biases: ClassVar[bool] = False
    # Whether the queries and keys of each head are normalised.
    head_norms: ClassVar[bool] = False

    num_hidden_layers: Size
    hidden_size: Size
    intermediate_size: Size
    num_attention_heads: Size
    vocab_size: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size = 2048
    rms_norm_eps: Positive = 1e-6
    initializer_range: Positive = 0.02
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: Any = None
    # False: sliding_window has no effect. A key of Qwen's models only.
    use_sliding_window: ClassVar[bool] = True
    quantization_config: Any = None


@dataclass(frozen=True, kw_only=True)
class Mistral(Llama):
    """Llama, with a sliding window unless the file has none."""

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    sliding_window: Any = 4096


@dataclass(frozen=True, kw_only=True)
class Qwen2(Llama):
    query_biases: ClassVar[bool] = True
    num_key_value_heads: Size | None = 32
    max_position_embeddings: Size = 32768
    sliding_window: Any = 4096
    use_sliding_window: bool = False  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Qwen3(Llama):
    head_norms: ClassVar[bool] = True
    num_key_value_heads: Size | None = 32
    head_dim: Size | None = 128
    max_position_embeddings: Size = 32768
    sliding_window: Any = 4096
    use_sliding_window: bool = False  # type: ignore[misc]


# By model_type.
FAMILIES: dict[str, type[Llama]] = {"llama": Llama, "mistral": Mistral, "qwen2": Qwen2, "qwen3": Qwen3}


def read_config(folder: Path) -> bytes:
    """Return the content of config.json in ``folder``. Raise ``ValueError`` if it cannot be read."""
    path = folder / "config.json"
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give the folder of a Hugging Face model or a "
            "checkpoint of caat"
        ) from None


@dataclass(frozen=True)
class Ends:
    """The tokens that end a text, in config.json or generation_config.json."""

    eos_token_id: Whole | tuple[Whole, ...] | None = None


def read_ends(folder: Path) -> list[int]:
    """Return the tokens at which `generate` of `transformers` ends a text, ascending."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            ends = read_record(folder / name, Ends).eos_token_id
            found.update(ends if isinstance(ends, tuple) else () if ends is None else (ends,))
    return sorted(found)


def read_kind(folder: Path) -> Kind:
    """Read the kind of model. Raise ``ValueError`` like :func:`read_config` or if it is not a JSON object."""
    return parse_record(read_config(folder), Kind, folder / "config.json")


def read_family(folder: Path) -> Llama:
    """Read config.json. Raise ``ValueError`` for the first key with a value that is not supported."""
    path = folder / "config.json"

    def refuse_unless(fine: bool, key: str, value: Any, remedy: str) -> None:
        require(fine, f"{path}: {key}={json.dumps(value)} {remedy}")

    kind = read_kind(folder).model_type
    refuse_unless(
        kind in FAMILIES,
        "model_type",
        kind,
        f"is not supported: give a model of type {', '.join(FAMILIES)} (SmolLM2 and many others are llama)",
    )
    values = parse_record(read_config(folder), FAMILIES[kind], path)
    refuse_unless(
        values.hidden_act == "silu", "hidden_act", values.hidden_act, "is not silu, which SwiGLU needs"
    )
    refuse_unless(
        values.query_biases or not values.attention_bias,
        "attention_bias",
        values.attention_bias,
        "means a bias of attention's output too, which caat does not support: give a model without it",
    )
    refuse_unless(
        not values.mlp_bias,
        "mlp_bias",
        values.mlp_bias,
        "means biases in the MLP, which caat does not support: give a model without them",
    )
    refuse_unless(
        values.sliding_window is None or not values.use_sliding_window,
        "sliding_window",
        values.sliding_window,
        "limits how far tokens attend, which caat does not support: give a model without it",
    )
    refuse_unless(
        values.quantization_config is None,
        "quantization_config",
        values.quantization_config,
        "means quantised weights: convert the original, unquantised model",
    )
    return values


def model_config(values: Llama, folder: Path) -> ModelConfig:
    """Convert to our configuration. Raise ``ValueError`` if the values do not fit together."""
    return ModelConfig(
        name=folder.resolve().name,
        layers=values.num_hidden_layers,
        hidden=values.hidden_size,
        ffn=values.intermediate_size,
        heads=values.num_attention_heads,
        kv_heads=values.num_key_value_heads or values.num_attention_heads,
        head_dim=head_dim_setting(values.hidden_size, values.num_attention_heads, values.head_dim),
        attention_bias=values.query_biases,
        qk_norm=values.head_norms,
        tie_embeddings=values.tie_word_embeddings,
        sequence=values.max_position_embeddings,
        vocab_size=values.vocab_size,
        rope_base=values.base or 10000.0,
        rope_scaling=values.scaling(values.max_position_embeddings, folder / "config.json"),
        norm_eps=values.rms_norm_eps,
        init_std=values.initializer_range,
    )
