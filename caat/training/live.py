"""Master weights and optimizer state of this process as they lie in memory, at every ZeRO stage.

Each stage cuts the state over the replicas in its own way, but always into ranges of the flattened
parameter. So one view serves all: saving copies the ranges out, loading copies them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from caat.optim.kinds import WEIGHT, StateKind
from caat.optim.optimizer import Optimizer
from caat.parallel.mesh import Mesh


@dataclass(frozen=True)
class Fragment:
    """Numbers ``[start, start + size)`` of a flattened tensor; ``numbers`` is a live view of them."""

    start: int
    numbers: Tensor

    @property
    def size(self) -> int:
        return self.numbers.numel()


@dataclass(frozen=True)
class Place:
    """Numbers ``[start, start + size)`` of a parameter are ``[offset, offset + size)`` of ``weight``.

    ``weight`` is flat, and one of the optimizer's own; None: this process holds nothing of the parameter.
    """

    weight: Tensor | None
    offset: int
    start: int
    size: int


class LiveState:
    """What this process holds of master weights and optimizer state, by kind.

    ``zero`` is DeepSpeed's optimizer round ``optimizer``. ``rounded``: the model computes with weights that
    are rounded from the master weights, so those are loaded and saved by themselves.
    """

    def __init__(
        self, model: nn.Module, zero: Any, optimizer: Optimizer, mesh: Mesh, *, stage: int, rounded: bool
    ) -> None:
        self.optimizer, self.mesh, self.rounded = optimizer, mesh, rounded
        self._model, self._zero = model, zero
        self._place = {0: _whole, 1: _mapped, 2: _mapped, 3: _partitioned}[stage]

    @property
    def kinds(self) -> tuple[StateKind, ...]:
        """The master weights and what the optimizer declares."""
        return (WEIGHT, *self.optimizer.kinds)

    def fragments(self) -> dict[tuple[str, str], Fragment]:
        """What this process holds, by parameter and kind; of size 0 where it holds nothing.

        Shared kinds: replicas hold disjoint ranges at stages 1 to 3, all of it at stage 0. Other kinds: the
        whole of this process's parameter; without the weights' shape, tensors by names of the optimizer's.
        """
        found = {}
        for name, parameter in self._model.named_parameters():
            place = self._place(parameter, self._zero, self.optimizer)
            for kind, values in self._shared(place).items():
                found[name, kind] = Fragment(place.start, values)
        for each in self.kinds:
            if not each.shared:
                own = self.optimizer.replica_state(each.name)
                found |= {(name, each.name): Fragment(0, values.view(-1)) for name, values in own.items()}
        return found

    def _shared(self, place: Place) -> dict[str, Tensor]:
        if place.weight is None:
            return {kind.name: torch.empty(0) for kind in self.kinds if kind.shared}
        values = {WEIGHT.name: place.weight.detach(), **self.optimizer.shared_state(place.weight)}
        return {kind: value.view(-1).narrow(0, place.offset, place.size) for kind, value in values.items()}


def _whole(parameter: nn.Parameter, zero: Any, optimizer: Optimizer) -> Place:
    return Place(parameter, 0, 0, parameter.numel())


def _mapped(parameter: Any, zero: Any, optimizer: Optimizer) -> Place:
    mapping = parameter._hp_mapping
    if mapping is None:
        return Place(None, 0, 0, 0)
    (flat,) = optimizer.param_groups[mapping.param_group_index]["params"]
    at = mapping.hp_fragment_address
    return Place(flat, at.start, mapping.lp_fragment_address.start, at.numel)


def _partitioned(parameter: Any, zero: Any, optimizer: Optimizer) -> Place:
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = size * zero._get_param_partition_rank(parameter)
    # The last partitions are padded to the length of the others.
    size = max(0, min(size, parameter.ds_numel - start))
    return Place(zero.fp32_partitioned_groups_flat[group], offset, start, size)
