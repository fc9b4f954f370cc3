"""Shuffled orders of any length in constant memory: seeded pseudo-random permutations, and epochs."""

from __future__ import annotations

ROUNDS = 8
MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """Hash ``numbers``, in order, to a 64-bit number (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


class Permutation:
    """A permutation of [0, n), determined by ``seed``: ``perm[i]`` for i in [0, n).

    A Feistel network permutes the numbers below the next power of four; results outside [0, n) pass through
    it again until they fall inside (cycle walking, fewer than four passes on average). The arithmetic is
    all-integer, so the order of a seed is the same on every machine.
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


class Epochs:
    """An endless order of the numbers [0, n): a new permutation every epoch. ``epochs[i]`` for i >= 0."""

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed
        self._epoch, self._order = 0, Permutation(n, mix(seed, 0))

    def __getitem__(self, i: int) -> int:
        epoch, i = divmod(i, self._n)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, Permutation(self._n, mix(self._seed, epoch))
        return self._order[i]
