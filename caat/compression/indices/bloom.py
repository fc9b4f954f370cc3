"""``index=bloom:E``: a Bloom filter with a share E of false positives (DeepReduce, NeurIPS 2021, policy P0).

The receiver tests every index below n. A false positive is sent with its true value, so it adds bytes and
reduces the error. The filter consists of lines of 256 bits, and an index sets k bits in one line (Putze,
Sanders and Singler 2007): one cache line per index. Lines do not fill evenly, which costs a few more bits
than a plain filter's ln(1 / E) / ln(2)^2 per index. With c bits per index, a line holds a Poisson number J
of indices:

    E = sum over J of Poisson(J; 256 / c) (1 - (1 - 1 / 256)^(J k))^k,  k = log2(1 / E)
"""

from __future__ import annotations

from functools import cache
from math import exp, log

import torch
from torch import Tensor

from caat.compression.codec import Parts
from caat.compression.indices.index import IndexCodec

LINE, FIELDS = 256, 7
# The finaliser of SplitMix64, as signed numbers.
MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
# Indices tested at a time.
CHUNK = 1 << 20


class Bloom(IndexCodec):
    """One part: the bytes of the filter. The number of decoded indices varies."""

    exact_size = False

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.hashes = max(1, round(log(1 / rate) / log(2)))

    def encode(self, indices: Tensor, n: int) -> Parts:
        bits = torch.zeros(8 * self.size(n, len(indices)), dtype=torch.uint8, device=indices.device)
        for number in range(self.hashes):
            bits[_place(indices, number, len(bits))] = 1
        shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
        return ((bits.view(-1, 8) << shifts).sum(1, dtype=torch.uint8),)

    def decode(self, parts: Parts, n: int) -> Tensor:
        shifts = torch.arange(8, dtype=torch.uint8, device=parts[0].device)
        bits = ((parts[0][:, None] >> shifts) & 1).view(-1).bool()
        found = []
        for first in range(0, n, CHUNK):
            indices = torch.arange(first, min(first + CHUNK, n), device=bits.device)
            for number in range(self.hashes):
                # Each bit rules out about half of the remaining indices.
                indices = indices[bits[_place(indices, number, len(bits))]]
            found.append(indices)
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=bits.device)

    def size(self, n: int, count: int) -> int:
        return LINE // 8 * max(1, round(count * _bits(self.rate, self.hashes) / LINE))

    def returned(self, n: int, count: int) -> int:
        """Return its mean."""
        return count + round(self.rate * (n - count))


@cache
def _bits(rate: float, hashes: int) -> float:
    """Return the bits per index that give a share ``rate`` of false positives."""
    low, high = 1.0, float(LINE)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _rate(middle, hashes) < rate else (middle, high)
    return high


def _rate(bits: float, hashes: int) -> float:
    mean = LINE / bits
    weight, total = exp(-mean), 0.0
    for held in range(1, int(mean + 12 * mean**0.5) + 12):
        weight *= mean / held
        total += weight * (1 - (1 - 1 / LINE) ** (held * hashes)) ** hashes
    return total


def _mix(x: Tensor) -> Tensor:
    """Hash each index; int64 wraps around, and the masks make its shifts unsigned."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * MIX[0]
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * MIX[1]
    return x ^ (x >> 31 & (1 << 33) - 1)


def _place(indices: Tensor, number: int, bits: int) -> Tensor:
    """Return the position of the ``number``-th bit of each index, in its line."""
    line = (_mix(indices) & (2**63 - 1)) % (bits // LINE)
    # One hash provides seven places of eight bits.
    places = _mix(indices * FIELDS + 1 + number // FIELDS)
    return line * LINE + (places >> 8 * (number % FIELDS) & (LINE - 1))
