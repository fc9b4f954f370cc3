"""What the messages between replicas keep from step to step, for saving and resuming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.data_axis import DataAxis


class DataSyncState:
    """Residuals of error feedback, factors of PowerSGD, and gathered weights that differ from exact ones.

    ``weights`` are the flat live weights that replicas gather, and this replica's part of each. ``layout``
    describes the run: the state of a process fits only into the same one. Empty if nothing is kept.
    """

    def __init__(self, axis: DataAxis, weights: Sequence[tuple[Tensor, Tensor]], layout: str) -> None:
        self._axis, self._weights = axis, weights
        zero = axis.zero
        self.layout = ""
        if zero:
            zero.weights.hold([own for _, own in weights])
            gradients, s = zero.gradients, zero.settings
            if gradients.feedback or gradients.codec.remembers or not zero.weights.exact:
                codecs = f"codec={s.codec} feedback={s.feedback} weights_codec={s.weights_codec}"
                self.layout = f"{codecs} {layout}"

    def tensors(self) -> dict[str, Tensor]:
        """Return the live state of this process by name."""
        zero = self._axis.zero
        if zero is None or not self.layout:
            return {}
        found = {f"weights.{number}": held for number, held in enumerate(zero.weights.held)}
        for kind, memory in zero.gradients.memories().items():
            key: Any
            for key, values in memory.items():
                (turn, part), n = key
                found[f"{kind}.{turn}.{part}.{n}"] = values
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that :meth:`tensors` returned on this process. Collective over the replicas."""
        zero = self._axis.zero
        assert zero is not None and self.layout
        memories = zero.gradients.memories()
        for name, values in tensors.items():
            kind, *key = name.split(".")
            if kind == "weights":
                self._gather(*self._weights[int(key[0])], values)
            else:
                turn, part, n = int(key[0]), key[1], int(key[2])
                memories[kind][(turn, int(part) if part.isdigit() else part), n] = values
        zero.weights.hold([own for _, own in self._weights])

    def _gather(self, flat: Tensor, own: Tensor, values: Tensor) -> None:
        """Give all replicas the weights that they held, of which ``values`` are this one's."""
        mine = values.to(flat)
        dist.all_gather(list(flat.chunk(self._axis.processes)), mine, group=self._axis.group)
        assert torch.equal(own, mine)
