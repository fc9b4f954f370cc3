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
        self._subtract(key, whole, self.codec.decode(parts, len(flat)))
        return parts

    @torch.no_grad()
    def reduce(self, key: Hashable, flat: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of all ranks' messages [n] and residuals, with a linear codec."""
        assert isinstance(self.codec, Linear)
        whole = self._whole(key, flat)
        summed, own = self.codec.reduce(key, whole, total)
        self._subtract(key, whole, own)
        return summed

    def _whole(self, key: Hashable, flat: Tensor) -> Tensor:
        """Return ``flat`` plus its residual, in the memory of the residual."""
        n = len(flat)
        if not flat.sum(dtype=torch.float32).isfinite():
            residual = self.residuals.get((key, n))
            return flat.float() if residual is None else flat + residual
        if (key, n) not in self.residuals:
            self.residuals[key, n] = torch.zeros(n, device=flat.device)
        return self.residuals[key, n].add_(flat)

    def _subtract(self, key: Hashable, whole: Tensor, sent: Tensor) -> None:
        """Leave in the residual what was not sent; nothing if another rank's numbers are not finite."""
        if self.residuals.get((key, len(whole))) is whole:
            whole.sub_(sent)
            if not whole.sum().isfinite():
                whole.zero_()
