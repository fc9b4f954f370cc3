"""A transformer block, and the loop over all blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import AnyStream, BatchStream, Halves, of_each
from conf.model import ModelConfig
from layers.attention import Attention, Context
from layers.cache import KVCache
from layers.documents import documents_of
from layers.mlp import MLP
from layers.norm import RMSNorm
from layers.rotary import Angles, rotary_angles


class Block(nn.Module):
    """Pre-norm attention, then MLP, each added to the stream: two partial synchronisations per direction."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, ratio: float, private_scale: float, recompute: bool
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, mesh, config.norm_eps)
        self.attention = Attention(config, mesh, ratio, private_scale, recompute)
        self.mlp_norm = RMSNorm(config.hidden, mesh, config.norm_eps)
        self.mlp = MLP(config, mesh, ratio, private_scale, recompute)

    def forward(
        self,
        x: BatchStream,
        gammas: Sequence[Tensor],
        angles: Angles,
        context: Context | None = None,
    ) -> BatchStream:
        """``gammas`` are the weights of the block's norms, in the order of :func:`norms_of`.

        Halves of a batch take turns: attention of both, then MLP of both. While the sum of one is in flight,
        the other one computes, also in the backward pass, where autograd reverses the order.
        """
        assert context is None or not isinstance(x, Halves), "a cache or documents belong to a whole batch"
        attention_gamma, *of_heads, mlp_gamma = gammas
        x = of_each(
            x,
            lambda one: self.attention(self.attention_norm(one, attention_gamma), angles, context, of_heads),
        )
        return of_each(x, lambda one: self.mlp(self.mlp_norm(one, mlp_gamma)))


def norms_of(blocks: Iterable[nn.Module]) -> list[RMSNorm]:
    """Return the norms of each block, in order: before attention, of queries and of keys, before the MLP."""
    return [part for block in blocks for part in block.modules() if isinstance(part, RMSNorm)]


def run_blocks(
    blocks: Iterable[nn.Module],
    x: BatchStream,
    gammas: Sequence[Tensor],
    places: Places,
    run: Callable[..., BatchStream] = lambda block, *arguments: block(*arguments),
) -> AnyStream:
    """Pass the stream ``x`` through all ``blocks``; ``gammas`` holds the weights of the norms of all blocks.

    ``run(block, *arguments)`` calls a block; it may wrap the call, for example for activation checkpointing.
    """
    each = len(gammas) // len(places.layers)
    for number, (block, layer) in enumerate(zip(blocks, places.layers, strict=True)):
        x = run(block, x, gammas[number * each : (number + 1) * each], places.angles, layer)
    return x.settled() if isinstance(x, Halves) else x


class Places(NamedTuple):
    """The rotary angles of the tokens of a forward pass, and what they attend to in each layer."""

    angles: Angles
    layers: Sequence[Context | None]


def places_of(x: Tensor, config: ModelConfig, cache: KVCache | None, borders: Tensor | None = None) -> Places:
    """Return the places of the tokens ``x`` [batch, seq, ...], which continue ``cache``.

    ``borders`` separate documents, whose tokens attend to each other only; they need an empty cache, None.
    """
    positions: Tensor = torch.arange(x.shape[1], device=x.device)
    layers: Sequence[Context | None] = [None] * config.layers
    if cache is not None:
        positions, layers = cache.extend(x.shape[1])
    elif borders is not None:
        positions, documents = documents_of(borders, x, config)
        layers = [documents] * config.layers
    return Places(rotary_angles(positions, config, x.dtype), layers)
