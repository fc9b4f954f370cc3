"""A shuffled order of any length that takes no memory: a seeded pseudo-random permutation."""

from __future__ import annotations

ROUNDS = 8
MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 64-bit number that depends on every bit of ``numbers`` and their order (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


class Permutation:
    """``perm[i]`` for i in [0, n) is every number of [0, n) once, in an order that ``seed`` chooses.

    A Feistel network permutes the next power of four; what falls outside [0, n) is sent through again
    until it falls inside (cycle walking, under four rounds on average). Integers only: the order of a
    seed never changes, on any machine.
    """

    def __init__(self, n: int, seed: int) -> None:
        assert n >= 1, n
        self.n = n
        self._half = ((n - 1).bit_length() + 1) // 2
        self._keys = [mix(seed, number) for number in range(ROUNDS)]

    def __getitem__(self, i: int) -> int:
        if not 0 <= i < self.n:
            raise IndexError(f"{i} is outside [0, {self.n})")
        i = self._network(i)
        while i >= self.n:
            i = self._network(i)
        return i

    def _network(self, value: int) -> int:
        half = self._half
        mask = (1 << half) - 1
        left, right = value >> half, value & mask
        for key in self._keys:
            left, right = right, left ^ (mix(key, right) & mask)
        return (left << half) | right
