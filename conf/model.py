"""The architecture of a GPT: `model.*`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_positive


@dataclass
class ModelConfig:
    """A Llama-style GPT: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no bias."""

    # What it is called in names of folders and in reports.
    name: str = "tiny"
    # Transformer blocks, each of attention and MLP.
    layers: int = 4
    # Channels of the residual stream.
    hidden: int = 256
    # Channels inside the MLP (SwiGLU); parallel.tensor divides it.
    ffn: int = 704
    # Heads of attention, of hidden / heads channels each; parallel.tensor divides them.
    heads: int = 8
    # Heads of keys and values; fewer than heads is grouped-query attention. parallel.tensor divides them.
    kv_heads: int = 8
    # Longest sequence the model is meant for (positions are rotary, so nothing is learned per position).
    sequence: int = 256
    # Entries of the vocabulary, and pieces of a tokenizer that is trained; another may have fewer.
    vocab_size: int = 4096
    # Rows of the embedding and the head after padding; default: the next multiple of parallel.tensor.
    padded_vocab_size: int | None = None
    # Base of the wavelengths of the rotary positions.
    rope_base: float = 10000.0
    # Added to the mean square in RMSNorm.
    norm_eps: float = 1e-5
    # Normal(0, init_std); the two projections that write to the residual use init_std / sqrt(2 * layers).
    init_std: float = 0.02

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
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "sequence", "vocab_size"):
            value = getattr(self, name)
            require(value < 2**31, f"model.{name}={value} is beyond {2**31 - 1:,}: no tensor is that long")
        require(
            self.hidden % self.heads == 0,
            f"model.hidden={self.hidden} is not divisible by model.heads={self.heads}: "
            "every head needs the same whole number of channels",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.hidden / model.heads = {self.head_dim} is odd: rotary positions turn pairs of channels",
        )
        require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} is not divisible by model.kv_heads={self.kv_heads}: "
            "every KV head serves the same number of query heads",
        )
        if self.padded_vocab_size is not None:
            require(
                self.padded_vocab_size >= self.vocab_size,
                f"model.padded_vocab_size={self.padded_vocab_size} is below "
                f"model.vocab_size={self.vocab_size}: padding can only add entries",
            )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def check_shards(self, shards: int) -> None:
        """Raise ``ValueError`` unless the model can be cut into ``shards`` tensor-parallel shards."""
        require(shards >= 1, f"parallel.tensor={shards} must be at least 1")
        for name in ("heads", "kv_heads", "ffn"):
            value = getattr(self, name)
            require(
                value % shards == 0,
                f"model.{name}={value} is not divisible by parallel.tensor={shards}: "
                f"choose a parallel.tensor that divides it (or change model.{name})",
            )
        if self.padded_vocab_size is not None:
            require(
                self.padded_vocab_size % shards == 0,
                f"model.padded_vocab_size={self.padded_vocab_size} is not divisible by "
                f"parallel.tensor={shards}: leave it out and the next multiple is used",
            )

    def padded_vocab(self, shards: int) -> int:
        """Rows of the embedding and head, a multiple of ``shards``; rows past ``vocab_size`` are masked."""
        if self.padded_vocab_size is not None:
            return self.padded_vocab_size
        return -(-self.vocab_size // shards) * shards
