"""Methods that choose the rows of a KV cache to attend to, for the comparison in docs/long-contexts.md.

Each gets the keys and values [batch, KV heads, tokens, d] of one layer and estimates attention logits
[batch, KV heads, group, queries, tokens], up to a constant per query, for the query heads [batch, KV heads,
group, queries, d] that share a KV head. Rows are then chosen in the same way for all methods.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

from layers.key_index import KeyIndex

PAGE = 16
Estimate = Callable[[Tensor], Tensor]


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """Return q k of all queries and the keys that they share; a broadcast product would copy the keys."""
    return (queries.flatten(2, 3) @ keys.mT).unflatten(2, queries.shape[2:4])


def exact(keys: Tensor, past: int) -> Estimate:
    """Return the logits themselves: the best possible choice."""
    return lambda queries: products(queries / sqrt(keys.shape[-1]), keys)


def index(bits: str) -> Callable[[Tensor, int], Estimate]:
    """Return caat's index, whose mean and range are those of the first ``past`` tokens."""

    def build(keys: Tensor, past: int) -> Estimate:
        index = KeyIndex(tuple(keys.shape), bits, keys.device)
        index.add(keys[:, :, :past])
        index.add(keys[:, :, past:])
        return lambda queries: index.estimate(queries.flatten(2, 3))[0].unflatten(2, queries.shape[2:4])

    return build


def sparq(r: int) -> Callable[[Tensor, int], Estimate]:
    """Return SparQ (arXiv 2312.04985): the products with the r largest components of the query.

    Its paper also gives the mass that was not chosen to the mean of all values: ``sparq:32,mean``.
    """

    def build(keys: Tensor, past: int) -> Estimate:
        def estimate(queries: Tensor) -> Tensor:
            sizes = queries.abs()
            largest = sizes.sum(2, keepdim=True).topk(r, -1).indices
            chosen = torch.zeros_like(sizes[:, :, :1]).scatter_(-1, largest, 1.0)
            share = (sizes * chosen).sum(-1, keepdim=True) / sizes.sum(-1, keepdim=True)
            return products(queries * chosen / (keys.shape[-1] * share).sqrt(), keys)

        return estimate

    return build


def quest(keys: Tensor, past: int) -> Estimate:
    """Return Quest (arXiv 2406.10774): an upper bound for each page of 16 keys."""
    missing = -keys.shape[2] % PAGE
    last = keys[:, :, -1:].expand(-1, -1, missing, -1)
    pages = torch.cat([keys, last], 2).unflatten(2, (-1, PAGE))
    low, high = pages.amin(3), pages.amax(3)

    def estimate(queries: Tensor) -> Tensor:
        scaled = queries / sqrt(keys.shape[-1])
        bounds = products(scaled.clamp(min=0), high) + products(scaled.clamp(max=0), low)
        return bounds.repeat_interleave(PAGE, -1)[..., : keys.shape[2]]

    return estimate


METHODS: dict[str, Callable[[Tensor, int], Estimate]] = {
    "best": exact,
    "int8": index("int8"),
    "int4": index("int4"),
    "sparq:32": sparq(32),
    "sparq:16": sparq(16),
    "quest": quest,
}
