"""The copy of the state that is saved while training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from caat.parallel.pinned import empty_pinned
from caat.training.checkpoint.exchange import Held
from caat.training.live import Fragment


class Snapshot:
    """Copies of ``names``, pairs of a tensor's name and kind, in host memory.

    The memory is reused between saves: touching new memory costs more than the copy.
    """

    def __init__(self, names: Sequence[tuple[str, str]]) -> None:
        self._names = names
        self._copies: dict[tuple[str, str], Tensor] = {}

    def take(self, fragments: Mapping[tuple[str, str], Fragment]) -> Held:
        """Copy the ``fragments``, and return the way to find a copy by name and kind."""
        for name in self._names:
            live = fragments[name].numbers
            if name not in self._copies:
                empty = empty_pinned if live.is_cuda else torch.empty
                self._copies[name] = empty(live.shape, dtype=torch.float32)
            self._copies[name].copy_(live, non_blocking=True)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return lambda name, kind: self._copies[name, kind]
