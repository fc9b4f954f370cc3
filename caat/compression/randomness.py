"""Random numbers that depend only on a seed and a count."""

from __future__ import annotations

import torch
from torch import Tensor

MASK = (1 << 63) - 1
# More than the messages of a step.
DRAWS = 1 << 24


class Counter:
    """Gives the same n-th draw for a seed in every process."""

    def __init__(self, seed: int) -> None:
        self.seed, self.number = seed, 0

    def start(self, step: int) -> None:
        """Continue with the draws of ``step``, so that a resumed run draws the same numbers."""
        self.number = step * DRAWS

    def next(self) -> int:
        """Return the number of the next draw."""
        self.number += 1
        return self.number

    def generator(self, number: int, device: torch.device) -> torch.Generator:
        """Return the generator of the draw ``number``."""
        generator = torch.Generator(device)
        # Odd multipliers keep neighbouring seeds and counts apart. On a CPU torch takes 32 bits of the seed.
        mixed = self.seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9
        generator.manual_seed((mixed ^ (mixed >> 31)) & MASK)
        return generator

    def uniform_like(self, x: Tensor) -> Tensor:
        """Return the next draw: uniform in [0, 1), of the shape of ``x``, in float32."""
        return torch.rand(x.shape, generator=self.generator(self.next(), x.device), device=x.device)
