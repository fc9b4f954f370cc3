"""config.json of a checkpoint: a Hugging Face configuration, and how the model is sharded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caat.storage.records import Finite, Positive, Size, Whole, parse_record
from caat.training.checkpoint.rope import RopeKeys, rope_json
from caat.training.checkpoint.state import read_checked
from conf.checks import require
from conf.model import ModelConfig, head_dim_setting
from conf.partition import shared_channels

# The model_type and the class of transformers by attention_bias and qk_norm. There is none for both.
CLASSES = {
    (False, False): ("llama", "LlamaForCausalLM"),
    (True, False): ("qwen2", "Qwen2ForCausalLM"),
    (False, True): ("qwen3", "Qwen3ForCausalLM"),
}
# Computes what a Llama computes. Llama's class refuses heads that do not divide the hidden channels.
MISTRAL = ("mistral", "MistralForCausalLM")


@dataclass(frozen=True)
class Architecture:
    """Everything that determines the function besides the weights: the model, and how it is sharded."""

    model: ModelConfig
    shards: int
    ratio: float
    shared_channels: int
    private_scale: float
    # The tokens that begin and end a document.
    bos: int = 1
    eos: int = 2
    # Other tokens that end a text which the model generates: an imported model may have several.
    more_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text, that of documents first."""
        return (self.eos, *self.more_ends)

    @property
    def plain(self) -> bool:
        """Whether no channel is private: then it is an ordinary model at any number of shards."""
        return self.shared_channels == self.model.hidden

    @property
    def transformers_class(self) -> str | None:
        """The class of transformers that computes the same function, if there is one."""
        found = self._family
        return found[1] if found and self.plain else None

    @property
    def _family(self) -> tuple[str, str] | None:
        found = CLASSES.get((self.model.attention_bias, self.model.qk_norm))
        return MISTRAL if found == CLASSES[False, False] and self.model.hidden % self.model.heads else found

    def to_json(self) -> dict[str, Any]:
        """A Hugging Face configuration with our part under ``caat``."""
        c = self.model
        odd = c.hidden % c.heads > 0
        model_type, name = self._family or (MISTRAL if odd else CLASSES[False, False])
        # Qwen2 has no key for its biases; in the others, attention_bias adds one to attention's output too.
        biases = {} if model_type == "qwen2" else {"attention_bias": False, "mlp_bias": False}
        return {
            "architectures": [name],
            "model_type": model_type,
            "hidden_size": c.hidden,
            "intermediate_size": c.ffn,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv_heads,
            "head_dim": c.head_size,
            "max_position_embeddings": c.sequence,
            "vocab_size": c.vocab_size,
            "rms_norm_eps": c.norm_eps,
            **rope_json(c),
            "initializer_range": c.init_std,
            "hidden_act": "silu",
            **biases,
            # Mistral's default is a window.
            **({"sliding_window": None} if odd else {}),
            "tie_word_embeddings": c.tie_embeddings,
            "bos_token_id": self.bos,
            "eos_token_id": list(self.ends) if self.more_ends else self.eos,
            "dtype": "float32",
            "caat": {
                "shards": self.shards,
                "ratio": self.ratio,
                "shared_channels": self.shared_channels,
                "private_scale": self.private_scale,
                "padded_vocab_size": c.padded_vocab(self.shards),
                "attention_bias": c.attention_bias,
                "qk_norm": c.qk_norm,
            },
        }

    @staticmethod
    def parse(content: bytes, path: Path) -> Architecture:
        """Parse the ``content`` of ``path``, a config.json.

        Raises ``ValueError`` for values that are missing, have another type or do not fit together.
        """
        values = parse_record(content, _Llama, path)
        require(
            values.caat is not None and values.base is not None,
            f"{path} has no {'caat' if values.caat is None else 'rope_theta'}: is it a caat checkpoint? "
            "`caat convert from=... to=...` makes one of a Hugging Face model",
        )
        assert values.caat is not None and values.base is not None
        cut = values.caat
        model = ModelConfig(
            name=path.parent.name,
            layers=values.num_hidden_layers,
            hidden=values.hidden_size,
            ffn=values.intermediate_size,
            heads=values.num_attention_heads,
            kv_heads=values.num_key_value_heads,
            head_dim=head_dim_setting(values.hidden_size, values.num_attention_heads, values.head_dim),
            attention_bias=cut.attention_bias,
            qk_norm=cut.qk_norm,
            tie_embeddings=values.tie_word_embeddings,
            sequence=values.max_position_embeddings,
            vocab_size=values.vocab_size,
            padded_vocab_size=cut.padded_vocab_size,
            rope_base=values.base,
            rope_scaling=values.scaling(values.max_position_embeddings, path),
            norm_eps=values.rms_norm_eps,
            init_std=values.initializer_range,
        )
        ratio = cut.ratio
        channels = shared_channels(model.hidden, ratio, cut.shards)
        if cut.shared_channels == int(ratio * model.hidden) < channels:
            # Earlier versions rounded down: use the ratio that gives these channels today.
            channels = cut.shared_channels
            ratio = channels / model.hidden
        require(
            cut.shared_channels == channels,
            f"{path} has shared_channels={cut.shared_channels}, but ratio={cut.ratio} of "
            f"{model.hidden} channels over {cut.shards} shards are {channels}: it was changed by hand",
        )
        ends = values.eos_token_id if isinstance(values.eos_token_id, tuple) else (values.eos_token_id,)
        require(bool(ends), f"{path} has eos_token_id=[]: a document needs a token that ends it")
        return Architecture(
            model, cut.shards, ratio, channels, cut.private_scale, values.bos_token_id, ends[0], ends[1:]
        )


@dataclass(frozen=True)
class _Cut:
    """The part of config.json under ``caat``."""

    shards: Size
    ratio: Finite
    shared_channels: Whole
    private_scale: Finite
    padded_vocab_size: Size
    # Checkpoints of earlier versions do not have what follows.
    attention_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class _Llama(RopeKeys):
    """The fields of config.json, as written by :meth:`Architecture.to_json` and `transformers`."""

    num_hidden_layers: Size
    hidden_size: Size
    intermediate_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size | None = None
    max_position_embeddings: Size
    vocab_size: Size
    rms_norm_eps: Positive
    initializer_range: Positive
    tie_word_embeddings: bool = False
    bos_token_id: Whole
    eos_token_id: Whole | tuple[Whole, ...]
    caat: _Cut | None = None


def read_architecture(folder: Path) -> Architecture:
    """Read config.json. Raise ``ValueError`` if it is missing, damaged or not ours."""
    path = folder / "config.json"
    return Architecture.parse(read_checked(path), path)
