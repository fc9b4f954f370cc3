"""The division of the channels into shared and private ones."""

from __future__ import annotations

from math import sqrt


def shared_channels(hidden: int, ratio: float, shards: int) -> int:
    """Return the number of shared channels, k = ⌊ratio · h⌋. With a single shard, all are shared: k = h.

    A product within 1e-6 of the next whole number is rounded up: in binary, 0.29 · 100 is less than 29.
    Raise ``ValueError`` if ``ratio`` is outside [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio={ratio} is outside [0, 1]: it is the fraction of channels synchronised")
    return hidden if shards == 1 else int(ratio * hidden + 1e-6)


def paper_scale(shards: int) -> float:
    """Return the paper's factor on private channels (arXiv 2506.19645).

    It gives a single term the variance of a sum of ``shards`` terms.
    """
    return sqrt(shards)
