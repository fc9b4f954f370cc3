"""Keys and values of the tokens that a model has read: what generation does not compute again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from caat.parallel.mesh import Mesh
from conf.model import ModelConfig


class LayerCache(NamedTuple):
    """What one layer reads and writes of a :class:`KVCache` in one forward pass."""

    keys: Tensor
    values: Tensor
    # Tokens that are in the cache already.
    length: int
    # Which keys a new token sees, [batch, 1, new, length + new]; None: all before it.
    mask: Tensor | None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of the new tokens [batch, heads, new, head_dim]; returns those of all tokens."""
        stop = self.length + keys.shape[2]
        self.keys[:, :, self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        return self.keys[:, :, :stop], self.values[:, :, :stop]


class KVCache:
    """Room for ``capacity`` tokens of each text of a batch, in all layers, for the shards of this process.

    Heads are cut over the shards, and so is the cache: [batch, KV heads of the local shards, capacity,
    head_dim] a layer. Shorter texts are padded on the left by ``padding`` [batch] columns, which nothing
    sees; a token's rotary position counts from the first column behind them.
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
        """Go on by ``new`` tokens: their rotary positions [batch, new], and the cache of every layer."""
        positions = self._columns(self.length, new) - self._padding[:, None]
        mask = self._mask(new) if self._padded or (self.length > 0 and new > 1) else None
        pairs = zip(self._keys, self._values, strict=True)
        layers = [LayerCache(keys, values, self.length, mask) for keys, values in pairs]
        self.length += new
        return positions, layers

    def _mask(self, new: int) -> Tensor:
        query = self._columns(self.length, new)[:, None]
        key = self._columns(0, self.length + new)
        # A padding column sees itself: with nothing to see it would be nan.
        visible = (key <= query) & ((key >= self._padding[:, None, None]) | (key == query))
        return visible.unsqueeze(1)

    def _columns(self, start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, device=self._padding.device)
