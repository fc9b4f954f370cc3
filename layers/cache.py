"""KV cache: keys and values of past tokens, so that generation does not recompute them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from caat.parallel.mesh import Mesh
from conf.model import ModelConfig

# Backends for generation, where every token has a new sequence length. cuDNN is excluded: it builds a plan
# for each length, which takes 78 ms on an H100, while the token itself takes 12 ms.
ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class LayerCache(Protocol):
    """One layer's view of a :class:`KVCache` for one forward pass."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new tokens' ``k`` and ``v`` and return the attention of ``q`` to all tokens.

        All are [batch, heads, new, head_dim]; ``q`` may have more heads, in equal groups.
        """


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, first: bool = False) -> Tensor:
    """Return the attention of new tokens to all; causal without ``mask`` if this is the ``first`` pass."""
    causal, grouped = first and mask is None, q.shape[1] != k.shape[1]
    with sdpa_kernel(ANY_LENGTH) if q.is_cuda and not first else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)


class DeviceLayerCache(NamedTuple):
    """One layer's keys and values in the memory of the model's device."""

    keys: Tensor
    values: Tensor
    # Number of tokens in the cache before this pass.
    length: int
    # Keys that each new token attends to, [batch, 1, new, length + new]; None: itself and all before it.
    mask: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stop = self.length + k.shape[2]
        self.keys[:, :, self.length : stop] = k
        self.values[:, :, self.length : stop] = v
        keys, values = self.keys[:, :, :stop], self.values[:, :, :stop]
        return attention(q, keys, values, self.mask, first=self.length == 0)


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
        self._padding = padding
        self._padded = bool(padding.any())
        self.length = 0
        self._allocate(config.layers, (len(padding), heads, capacity, config.head_size), dtype)

    def _allocate(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        """Reserve memory for the ``keys`` and ``values`` of this ``shape`` in each layer."""
        whole = (2, layers, *shape)
        self.keys, self.values = torch.empty(whole, dtype=dtype, device=self._padding.device)

    def _views(self, mask: Tensor | None, new: int) -> Sequence[LayerCache]:
        """Return each layer's cache for a pass of ``new`` tokens."""
        pairs = zip(self.keys, self.values, strict=True)
        return [DeviceLayerCache(keys, values, self.length, mask) for keys, values in pairs]

    def extend(self, new: int) -> tuple[Tensor, Sequence[LayerCache]]:
        """Extend by ``new`` tokens; return their rotary positions [batch, new] and each layer's cache."""
        positions = self._columns(self.length, new) - self._padding[:, None]
        mask = self._mask(new) if self._padded or (self.length > 0 and new > 1) else None
        layers = self._views(mask, new)
        self.length += new
        return positions, layers

    def rewind(self, length: int) -> None:
        """Forget the tokens from column ``length`` on."""
        self.length = length

    def _mask(self, new: int) -> Tensor:
        query = self._columns(self.length, new)[:, None]
        key = self._columns(0, self.length + new)
        # A padding column attends to itself: with no key at all, softmax would give nan.
        visible = (key <= query) & ((key >= self._padding[:, None, None]) | (key == query))
        return visible.unsqueeze(1)

    def _columns(self, start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, device=self._padding.device)
