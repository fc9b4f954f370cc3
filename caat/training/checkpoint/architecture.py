"""config.json of a checkpoint: a Hugging Face Llama configuration, and how the model is cut."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caat.training.checkpoint.state import read_checked
from conf.checks import require
from conf.model import ModelConfig
from conf.partition import shared_channels


@dataclass(frozen=True)
class Architecture:
    """What makes the function: the model, and how it is cut."""

    model: ModelConfig
    shards: int
    ratio: float
    shared_channels: int
    private_scale: float
    # Of the tokenizer: the tokens that begin and end a document.
    bos: int = 1
    eos: int = 2

    @property
    def plain(self) -> bool:
        """Whether nothing is private: then it is an ordinary Llama, at any number of shards."""
        return self.shared_channels == self.model.hidden

    def to_json(self) -> dict[str, Any]:
        """A Hugging Face Llama configuration with our part under ``caat``."""
        c = self.model
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": c.hidden,
            "intermediate_size": c.ffn,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "max_position_embeddings": c.sequence,
            "vocab_size": c.vocab_size,
            "rms_norm_eps": c.norm_eps,
            "rope_theta": c.rope_base,
            "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
            "initializer_range": c.init_std,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "dtype": "float32",
            "caat": {
                "shards": self.shards,
                "ratio": self.ratio,
                "shared_channels": self.shared_channels,
                "private_scale": self.private_scale,
                "padded_vocab_size": c.padded_vocab(self.shards),
            },
        }

    @staticmethod
    def from_json(values: dict[str, Any], where: Path) -> Architecture:
        """Raises ``ValueError`` for values that are missing, of another type, or do not fit together."""
        try:
            ours = values["caat"]
            model = ModelConfig(
                name=where.name,
                layers=values["num_hidden_layers"],
                hidden=values["hidden_size"],
                ffn=values["intermediate_size"],
                heads=values["num_attention_heads"],
                kv_heads=values["num_key_value_heads"],
                sequence=values["max_position_embeddings"],
                vocab_size=values["vocab_size"],
                padded_vocab_size=ours["padded_vocab_size"],
                rope_base=(values.get("rope_parameters") or values)["rope_theta"],
                norm_eps=values["rms_norm_eps"],
                init_std=values["initializer_range"],
            )
            found = Architecture(
                model,
                ours["shards"],
                ours["ratio"],
                ours["shared_channels"],
                ours["private_scale"],
                values["bos_token_id"],
                values["eos_token_id"],
            )
            channels = shared_channels(model.hidden, found.ratio, found.shards)
        except KeyError as missing:
            raise ValueError(f"{where}: config.json has no {missing}: is it a caat checkpoint?") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{where}: config.json is not as caat writes it ({error})") from None
        require(
            found.shared_channels == channels,
            f"{where}: config.json has shared_channels={found.shared_channels}, but ratio={found.ratio} of "
            f"{model.hidden} channels over {found.shards} shards are {channels}: it was changed by hand",
        )
        return found


def read_architecture(folder: Path) -> Architecture:
    """From config.json; raises ``ValueError`` if it is missing, damaged or not ours."""
    text = read_checked(folder / "config.json")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{folder}: config.json cannot be read ({error})") from None
    return Architecture.from_json(values, folder)
