"""Error feedback: the error of one message is added to the next (arXiv 1901.09847, algorithm 2).

c = C(g + e),  e <- g + e - decode(c)
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from caat.compression.codec import Codec, Parts


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
        n = len(flat)
        residual = self.residuals.get((key, n))
        whole = flat.float() if residual is None else flat.float() + residual
        parts = self.codec.encode(whole)
        left = whole - self.codec.decode(parts, n)
        if left.isfinite().all():
            self.residuals[key, n] = left
        return parts
