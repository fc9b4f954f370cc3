"""What a ratio and a number of shards make of the channels."""

from __future__ import annotations

from math import sqrt


def shared_channels(hidden: int, ratio: float, shards: int) -> int:
    """k = ⌊ratio · h⌋; a single shard has nothing to be private from, so there k = h.

    A product within 1e-6 of the next whole number is that number: in binary 0.29 · 100 is less than 29.
    Raises ``ValueError`` if ``ratio`` is outside [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio={ratio} is outside [0, 1]: it is the fraction of channels synchronised")
    return hidden if shards == 1 else int(ratio * hidden + 1e-6)


def paper_scale(shards: int) -> float:
    """The paper's factor on private channels: one term then varies as a sum of N (arXiv 2506.19645)."""
    return sqrt(shards)
