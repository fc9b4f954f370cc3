"""Other ways to attend to a KV cache in another host's memory, for comparison: all of it, and SparQ."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from eval.speed.remote_memory import RemoteMemory
from layers.cache import attention
from layers.host_cache import FIRST, LAST


class FullFetch:
    """Fetches all keys and values for each token, as offloaded caches do."""

    def __init__(self, memory: RemoteMemory) -> None:
        self.memory, self.length = memory, 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.memory.write(self.length, k, v)
        keys, values = self.memory.read(self.length + 1)
        return attention(q, keys, values, None)


class SparQ:
    """SparQ (arXiv 2312.04985): fetches the ``r`` largest components of the query, of all keys, then rows.

    Without its mean of all values: see docs/long-contexts.md.
    """

    def __init__(self, memory: RemoteMemory, r: int, keep: int) -> None:
        self.memory, self.r, self.keep, self.length = memory, r, keep, 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.memory.write(self.length, k, v)
        total, heads = self.length + 1, k.shape[1]
        queries = q.unflatten(1, (heads, -1)).squeeze(3)
        channels = queries.abs().sum(2).topk(self.r, -1).indices
        part = queries.gather(3, channels[:, :, None].expand(-1, -1, queries.shape[2], -1))
        share = part.abs().sum(-1, keepdim=True) / queries.abs().sum(-1, keepdim=True)
        found = self.memory.components(channels)[..., :total]
        mass = (part @ found / (q.shape[-1] * share).sqrt()).softmax(-1).sum(2)
        mass[..., :FIRST] = mass[..., total - LAST :] = inf
        rows = mass.topk(min(total, self.keep + FIRST + LAST), -1).indices
        batch, head = (each.expand_as(rows).flatten() for each in _grid(rows))
        keys, values = (each.view(*rows.shape, -1) for each in self.memory.rows(batch, head, rows.flatten()))
        return attention(q, keys, values, None)


def _grid(rows: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads = rows.shape[:2]
    return torch.arange(batch)[:, None, None], torch.arange(heads)[None, :, None]
