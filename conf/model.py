"""Settings of the model's architecture: `model.*`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import require, require_positive
from conf.field import setting
from conf.rope_scaling import RopeScalingConfig


def head_dim_setting(hidden: int, heads: int, head_dim: int | None) -> int | None:
    """Return `model.head_dim` for a file's ``head_dim``: None, the setting's default, if it is the usual."""
    return None if head_dim is None or head_dim * heads == hidden else head_dim


@dataclass
class ModelConfig:
    """A Llama-style GPT: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    name: str = setting("tiny", "Name of the model in folder names and reports.")
    layers: int = setting(4, "Number of transformer blocks, each with attention and an MLP.")
    hidden: int = setting(256, "Number of channels of the residual stream.")
    ffn: int = setting(704, "Number of channels inside the MLP (SwiGLU). parallel.tensor must divide it.")
    heads: int = setting(
        8,
        "Number of attention heads. parallel.tensor must divide it.",
    )
    kv_heads: int = setting(
        8,
        "Number of key and value heads. Fewer than heads is grouped-query attention. parallel.tensor "
        "must divide it.",
    )
    head_dim: int | None = setting(
        None, "Number of channels of a head, even. Default: hidden / heads, which must then be whole."
    )
    attention_bias: bool = setting(False, "Whether query, key and value have biases (Qwen2).")
    qk_norm: bool = setting(
        False, "Whether the queries and keys of each head are normalised before rotary positions (Qwen3)."
    )
    tie_embeddings: bool = setting(
        False, "Whether the head's weights are those of the embedding (Llama 3.2, SmolLM2)."
    )
    sequence: int = setting(
        256,
        "Maximum sequence length, in tokens. Positions are rotary, so no weight depends on it.",
    )
    vocab_size: int = setting(
        4096,
        "Number of entries of the vocabulary. A tokenizer trained by caat has as many pieces; a given one "
        "may have fewer.",
    )
    padded_vocab_size: int | None = setting(
        None,
        "Number of rows of the embedding and the head after padding. Default: the next multiple of "
        "parallel.tensor.",
    )
    rope_base: float = setting(10000.0, "Base of the wavelengths of the rotary positions.")
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    norm_eps: float = setting(1e-5, "Constant added to the mean square in RMSNorm.")
    init_std: float = setting(
        0.02,
        "Standard deviation of the normally distributed initial weights. The two projections that write "
        "to the residual stream use init_std / sqrt(2 * layers).",
    )

    def __post_init__(self) -> None:
        require_positive(
            model__layers=self.layers,
            model__hidden=self.hidden,
            model__ffn=self.ffn,
            model__heads=self.heads,
            model__kv_heads=self.kv_heads,
            model__sequence=self.sequence,
            model__vocab_size=self.vocab_size,
            model__rope_base=self.rope_base,
            model__norm_eps=self.norm_eps,
            model__init_std=self.init_std,
        )
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "sequence", "vocab_size"):
            value = getattr(self, name)
            require(
                value is None or value < 2**31,
                f"model.{name}={value} is too large: the maximum is {2**31 - 1:,}",
            )
        self._check_head_size()
        require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} is not divisible by model.kv_heads={self.kv_heads}: "
            "every KV head serves the same number of query heads",
        )
        self._check_rope_scaling()
        if self.padded_vocab_size is not None:
            require(
                self.padded_vocab_size >= self.vocab_size,
                f"model.padded_vocab_size={self.padded_vocab_size} is below "
                f"model.vocab_size={self.vocab_size}: padding can only add rows",
            )

    def _check_head_size(self) -> None:
        if self.head_dim is not None:
            require_positive(model__head_dim=self.head_dim)
        require(
            self.head_dim is not None or self.hidden % self.heads == 0,
            f"model.hidden={self.hidden} is not divisible by model.heads={self.heads}: every head needs the "
            "same whole number of channels. Or give it as model.head_dim=...",
        )
        require(
            self.head_size % 2 == 0,
            f"{self._named_head_size} is odd: rotary positions rotate pairs of channels",
        )

    def _check_rope_scaling(self) -> None:
        kind = self.rope_scaling.kind
        require(
            kind != "dynamic" or self.head_size > 2,
            f"{self._named_head_size} must be above 2 with "
            "model.rope_scaling.kind=dynamic, which keeps the highest frequency and scales the others",
        )
        require(
            kind != "yarn" or self.rope_base > 1,
            f"model.rope_base={self.rope_base} must be above 1 with model.rope_scaling.kind=yarn, which "
            "divides low frequencies only",
        )

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.hidden // self.heads if self.head_dim is None else self.head_dim

    @property
    def _named_head_size(self) -> str:
        if self.head_dim is not None:
            return f"model.head_dim={self.head_dim}"
        return f"model.hidden / model.heads = {self.head_size}"

    @property
    def query_size(self) -> int:
        """Channels of all query heads, which are also the inputs of attention's output projection."""
        return self.heads * self.head_size

    @property
    def key_value_size(self) -> int:
        """Channels of all key heads, which are as many as those of all value heads."""
        return self.kv_heads * self.head_size

    def check_shards(self, shards: int, setting: str = "parallel.tensor") -> None:
        """Raise ``ValueError``, naming the ``setting``, unless the model can be split into ``shards``."""
        require(shards >= 1, f"{setting}={shards} must be at least 1")
        for name in ("heads", "kv_heads", "ffn"):
            value = getattr(self, name)
            require(
                value % shards == 0,
                f"model.{name}={value} is not divisible by {setting}={shards}: "
                f"choose a {setting} that divides it (or change model.{name})",
            )
        if self.padded_vocab_size is not None:
            require(
                self.padded_vocab_size % shards == 0,
                f"model.padded_vocab_size={self.padded_vocab_size} is not divisible by "
                f"{setting}={shards}: leave it out to use the next multiple",
            )

    def padded_vocab(self, shards: int) -> int:
        """Return the rows of embedding and head, a multiple of ``shards``. The padding is masked."""
        if self.padded_vocab_size is not None:
            return self.padded_vocab_size
        return -(-self.vocab_size // shards) * shards
