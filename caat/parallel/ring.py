"""The bytes of a ring. Imports no torch: traffic is planned before processes start."""

from __future__ import annotations


def ring_bytes(size: int, ranks: int) -> int:
    """Return the bytes that each of ``ranks`` sends in a ring all-reduce of ``size`` bytes, rounded up."""
    return -(-2 * (ranks - 1) * size // ranks)
