"""Error feedback: the error of one message is added to the next (arXiv 1901.09847, algorithm 2).

c = C(g + e),  e <- g + e - decode(c)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from caat.compression.codec import Codec, Linear, Parts


class Feedback:
    """The residuals of one rank's messages, by key and length."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.residuals: dict[tuple[Hashable, int], Tensor] = {}

    @torch.no_grad()
    def encode(self, key: Hashable, flat: Tensor) -> Parts:
        """Encode ``flat`` [n] plus the residual of the last message with this ``key``.

        A message that is not finite leaves the residual unchanged, because its step is skipped.
        """
        whole = self._whole(key, flat)
        parts = self.codec.encode(whole)
        self._keep(key, whole, self.codec.decode(parts, len(flat)))
        return parts

    @torch.no_grad()
    def reduce(self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of all ranks' messages [n] and residuals, with a linear codec."""
        assert isinstance(self.codec, Linear)
        whole = self._whole(key, flat)
        summed, own = self.codec.reduce(key, whole, total)
        self._keep(key, whole, own)
        return summed

    def _whole(self, key: Hashable, flat: Tensor) -> Tensor:
        residual = self.residuals.get((key, len(flat)))
        return flat.float() if residual is None else flat.float() + residual

    def _keep(self, key: Hashable, whole: Tensor, sent: Tensor) -> None:
        left = whole - sent
        if left.isfinite().all():
            self.residuals[key, len(whole)] = left
