"""GPT with N tensor-parallel shards and a partially synchronised residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caat.parallel.mesh import Mesh
from caat.parallel.partial import pointwise
from caat.parallel.partial.stream import BatchStream, enter
from caat.parallel.sharding import Sharding
from conf.model import ModelConfig
from conf.partition import shared_channels
from layers.attention import Attention
from layers.block import Block, norms_of, places_of, run_blocks
from layers.cache import KVCache
from layers.embedding import VocabParallelEmbedding
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.loss import mask_padding, vocab_parallel_cross_entropy
from layers.mlp import MLP
from layers.norm import Normed, RMSNorm, norm_weights
from layers.weights import FullWeights, Weight, gpt_weights


class GPT(nn.Module):
    """Token numbers and targets [batch, seq] -> loss of every token [batch, seq].

    Without targets it returns this process's slice of the logits [batch, seq, local vocabulary]. With a
    cache, which the tokens continue, it returns those of the last token only [batch, 1, local vocabulary].
    ``borders``, int32 [documents + 1], say where documents begin in the flattened batch, and its end: each is
    then computed as if it were alone. Every sequence begins with one.

    The number of shards ``mesh.shards`` and ``ratio`` are part of the architecture; the number of
    processes is not. Raises ``ValueError`` if the shards do not divide heads, KV heads, FFN or vocabulary.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        ratio: float,
        private_scale: float = 1.0,
        activation_checkpointing: str = "none",
    ) -> None:
        super().__init__()
        config.check_shards(mesh.shards)
        self.config, self.mesh = config, mesh
        self.private_scale = private_scale
        self.compiled = False
        self.padded_vocab = config.padded_vocab(mesh.shards)
        self.checkpoint_blocks = activation_checkpointing == "full"
        recompute = activation_checkpointing == "selective"
        self.embedding = VocabParallelEmbedding(self.padded_vocab, config.hidden, mesh)
        self.blocks = nn.ModuleList(
            Block(config, mesh, ratio, private_scale, recompute) for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.hidden, mesh, config.norm_eps)
        self.head = ColumnParallelLinear(config.hidden, self.padded_vocab, mesh)
        self._tie()
        self.set_ratio(ratio)

    def _tie(self) -> None:
        # Both are split by vocabulary: a shard's rows of the head are its rows of the embedding.
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def _apply(self, *arguments: Any, **named: Any) -> GPT:
        """Change all weights, such as their device. Torch does so module by module, which unties them."""
        super()._apply(*arguments, **named)
        self._tie()
        return self

    @staticmethod
    def empty(
        config: ModelConfig,
        mesh: Mesh,
        ratio: float,
        private_scale: float = 1.0,
        activation_checkpointing: str = "none",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> GPT:
        """Return a model with uninitialised weights, to be set by :meth:`fill`."""
        with torch.device("meta"):
            model = GPT(config, mesh, ratio, private_scale, activation_checkpointing)
        # to_empty would import sympy: half a second in every process.
        return model._apply(lambda weight: torch.empty(weight.shape, dtype=dtype, device=device))

    def fill(self, full: FullWeights) -> GPT:
        """Set the weights to this process's shards of the full ones, ``full(name, shape)``.

        In addition to the local shards, only one full matrix is in memory at a time.
        """
        for weight in gpt_weights(self.config):
            tensors = weight.full_tensors(self.sharding_of(weight))
            tensors.fill(self.get_parameter(weight.parameter).detach(), self.mesh.local_shards, full)
        return self

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        borders: Tensor | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Tensor:
        normed = self.hidden(tokens, cache, borders)
        if cache is not None and tokens.shape[1] > 1:
            normed = normed.last()
        if targets is None:
            _, logits = self.head.after_norm(normed)
            return mask_padding(logits, self.config.vocab_size, self.mesh)
        _, logits, rstd = self.head.unscaled_after_norm(normed)
        return vocab_parallel_cross_entropy(
            logits, targets, self.config.vocab_size, self.mesh, compiled=self.compiled, rstd=rstd
        )

    def set_ratio(self, ratio: float) -> None:
        """Synchronise this fraction of the channels from the next forward pass on.

        No weight changes: the ratio only determines which channels are summed over the shards, and every
        forward pass starts from an embedding that is the same on all shards.
        """
        self.ratio = ratio
        self.shared_channels = shared_channels(self.config.hidden, ratio, self.mesh.shards)
        for module in self.modules():
            if isinstance(module, RowParallelLinear):
                module.set_ratio(ratio)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, borders: Tensor | None = None) -> Normed:
        """[batch, seq] -> the final residual stream, to be normalised by the head."""
        # Created first, so that the all-reduce of their gradients comes last in backward and delays no other.
        gammas = norm_weights([*norms_of(self.blocks), self.norm], self.mesh)
        embedded = self.embedding(tokens)
        x = run_blocks(
            self.blocks,
            enter(embedded, self.shared_channels, self.mesh),
            gammas[:-1],
            places_of(embedded, self.config, cache, borders),
            self._run,
        )
        return self.norm(x, gammas[-1])

    def _run(self, block: nn.Module, *arguments: Any) -> BatchStream:
        if not (self.checkpoint_blocks and self.training):
            return block(*arguments)
        return checkpoint(block, *arguments, use_reentrant=False, context_fn=self.mesh.tape.contexts)

    def compile_cores(self) -> None:
        """Fuse the work between the GEMMs with torch.compile: norms, residuals, rotary, SwiGLU, loss.

        The GEMMs and their all-reduces are not compiled: their order is what hides communication.
        """
        self.compiled = True
        for part in self.modules():
            if isinstance(part, Attention | MLP):
                part.core = pointwise.compile(part.core)  # type: ignore[method-assign]
            if isinstance(part, ColumnParallelLinear | RowParallelLinear):
                part.compiled = True

    def sharding_of(self, weight: Weight) -> Sharding | None:
        """Return how ``weight`` is sharded, as declared by its layer; None: replicated."""
        module = self.get_submodule(weight.parameter.rpartition(".")[0])
        return getattr(module, "sharding", None)
