"""KV cache: keys and values of past tokens, so that generation does not recompute them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from caat.parallel.mesh import Mesh
from conf.model import ModelConfig


class LayerCache(NamedTuple):
    """One layer's view of a :class:`KVCache` for one forward pass."""

    keys: Tensor
    values: Tensor
    # Number of tokens in the cache before this pass.
    length: int
    # Keys that each new token attends to, [batch, 1, new, length + new]; None: itself and all before it.
    mask: Tensor | None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new tokens [batch, heads, new, head_dim]; return those of all tokens."""
        stop = self.length + keys.shape[2]
        self.keys[:, :, self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        return self.keys[:, :, :stop], self.values[:, :, :stop]


class KVCache:
    """Cache of ``capacity`` tokens for each sequence of a batch, in all layers, for the local shards.

    Like the heads, the cache is split over the shards: [batch, KV heads of the local shards, capacity,
    head_dim] per layer. Shorter sequences are padded on the left by ``padding`` [batch] columns, which no
    token attends to; rotary positions count from the first column after the padding.
    """

    def __init__(
        self, config: ModelConfig, mesh: Mesh, padding: Tensor, capacity: int, dtype: torch.dtype
    ) -> None:
        heads = config.kv_heads // mesh.shards * mesh.local
        shape = (2, config.layers, len(padding), heads, capacity, config.head_dim)
        self._keys, self._values = torch.empty(shape, dtype=dtype, device=padding.device)
        self._padding = padding
        self._padded = bool(padding.any())
        self.length = 0

    def extend(self, new: int) -> tuple[Tensor, list[LayerCache]]:
        """Extend by ``new`` tokens; return their rotary positions [batch, new] and each layer's cache."""
        positions = self._columns(self.length, new) - self._padding[:, None]
        mask = self._mask(new) if self._padded or (self.length > 0 and new > 1) else None
        pairs = zip(self._keys, self._values, strict=True)
        layers = [LayerCache(keys, values, self.length, mask) for keys, values in pairs]
        self.length += new
        return positions, layers

    def _mask(self, new: int) -> Tensor:
        query = self._columns(self.length, new)[:, None]
        key = self._columns(0, self.length + new)
        # A padding column attends to itself: with no key at all, softmax would give nan.
        visible = (key <= query) & ((key >= self._padding[:, None, None]) | (key == query))
        return visible.unsqueeze(1)

    def _columns(self, start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, device=self._padding.device)
