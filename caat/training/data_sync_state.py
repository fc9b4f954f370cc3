"""What the messages between replicas keep from step to step, for saving and resuming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.data_axis import DataAxis
from caat.parallel.reduction import Reduction


class DataSyncState:
    """Residuals of error feedback, factors of PowerSGD, and gathered weights that differ from exact ones.

    ``weights`` are the flat live weights that replicas gather, and this replica's part of each. ``layout``
    describes the run: the state of a process fits only into the same one. Empty if nothing is kept.
    """

    def __init__(self, axis: DataAxis, weights: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._axis, self._weights = axis, weights
        zero = axis.zero
        self.layout = ""
        if zero:
            zero.weights.hold([own for _, own in weights])
            gradients, s = zero.gradients, zero.settings
            if gradients.feedback or gradients.codec.remembers or not zero.weights.exact:
                self.layout = f"codec={s.codec} feedback={s.feedback} weights_codec={s.weights_codec}"

    def tensors(self) -> dict[str, Tensor]:
        """Return the live state of this process by name."""
        zero = self._axis.zero
        if zero is None or not self.layout:
            return {}
        found = {f"weights.{number}": held for number, held in enumerate(zero.weights.held)}
        return found | memories_by_name(zero.gradients)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that :meth:`tensors` returned on this process. Collective over the replicas."""
        zero = self._axis.zero
        assert zero is not None and self.layout
        for name, values in tensors.items():
            if name.startswith("weights."):
                self._gather(*self._weights[int(name.removeprefix("weights."))], values)
            else:
                restore_memory(zero.gradients, name, values)
        zero.weights.hold([own for _, own in self._weights])

    @contextmanager
    def exact_weights(self) -> Iterator[None]:
        """Gather weights exactly for a while, then give the model back those that it had. Collective.

        A gather of changes would round whatever the model computes with meanwhile, and the way back.
        """
        zero = self._axis.zero
        if zero is None or zero.weights.exact:
            yield
            return
        zero.weights.exact = True
        try:
            yield
        finally:
            zero.weights.exact = False
            with torch.no_grad():
                for (flat, own), held in zip(self._weights, zero.weights.held, strict=True):
                    self._gather(flat, own, held)

    def _gather(self, flat: Tensor, own: Tensor, values: Tensor) -> None:
        """Give all replicas the weights that they held, of which ``values`` are this one's."""
        mine = values.to(flat)
        dist.all_gather(list(flat.chunk(self._axis.processes)), mine, group=self._axis.group)
        assert torch.equal(own, mine)


def memories_by_name(reduction: Reduction) -> dict[str, Tensor]:
    """Return what ``reduction`` keeps between steps, by names that :func:`restore_memory` understands."""
    found = {}
    for kind, memory in reduction.memories().items():
        key: Any
        for key, values in memory.items():
            (turn, part), n = key
            found[f"{kind}.{turn}.{part}.{n}"] = values
    return found


def restore_memory(reduction: Reduction, name: str, values: Tensor) -> None:
    """Restore one of :func:`memories_by_name`."""
    kind, turn, part, n = name.split(".")
    reduction.memories()[kind][(int(turn), int(part) if part.isdigit() else part), int(n)] = values
