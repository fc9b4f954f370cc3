"""Views of the master weights and optimizer state in this process's memory, at every ZeRO stage.

Each stage partitions the state over the replicas in a different way, but always into ranges of the flattened
parameter. One view serves all stages: saving copies the ranges out, loading copies them in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from caat.optim.kinds import WEIGHT, StateKind
from caat.optim.optimizer import Optimizer
from caat.optim.places import Place
from caat.parallel.mesh import Mesh
from caat.training.data_sync_state import DataSyncState
from caat.training.islands.kept import OWN_WEIGHT
from caat.training.islands.outer_steps import Islands
from caat.training.partitions import gathered_weights


@dataclass(frozen=True)
class Fragment:
    """Numbers ``[start, start + size)`` of a flattened tensor; ``numbers`` is a live view of them."""

    start: int
    numbers: Tensor

    @property
    def size(self) -> int:
        return self.numbers.numel()


class LiveState:
    """This process's part of master weights and optimizer state, by kind.

    ``zero`` is DeepSpeed's wrapper around ``optimizer``. ``rounded``: the model's weights are rounded copies
    of the master weights, so the master weights are loaded and saved separately.
    """

    def __init__(
        self, model: nn.Module, zero: Any, optimizer: Optimizer, mesh: Mesh, *, stage: int, rounded: bool
    ) -> None:
        self.optimizer, self.mesh, self.rounded = optimizer, mesh, rounded
        self._model, self._zero = model, zero
        weights = gathered_weights(zero, mesh.data_rank) if stage in (1, 2) and mesh.data_size > 1 else []
        # Fused weights are stacked by shard, so other shards put the same numbers into another order.
        self._layout = (
            f"stage={stage} bf16={rounded} replicas={mesh.data_size} processes={mesh.processes} "
            f"shards={mesh.shards} vocabulary={model.config.padded_vocab(mesh.shards)}"  # type: ignore[union-attr, operator]
        )
        if mesh.islands.processes > 1:
            self._layout += f" islands={mesh.islands.processes}"
        # What the messages between replicas keep from step to step.
        self.data_sync = DataSyncState(mesh.data, weights)
        # Set if there are outer steps. The master weights are then those of this island, and the anchor is
        # saved as the model.
        self.islands: Islands | None = None
        self._place = {0: _whole, 1: _mapped, 2: _mapped, 3: _partitioned}[stage]

    @property
    def kinds(self) -> tuple[StateKind, ...]:
        """The master weights and what the optimizer declares; islands add theirs."""
        if self.islands is None:
            return (WEIGHT, *self.optimizer.kinds)
        own = (replace(kind, island=True) for kind in self.optimizer.kinds)
        return (WEIGHT, *self.islands.kept.kinds, *own)

    def places(self) -> dict[str, Place]:
        """Return where the optimizer has this process's part of each parameter."""
        named = self._model.named_parameters()
        return {name: self._place(parameter, self._zero, self.optimizer) for name, parameter in named}

    def fragments(self) -> dict[tuple[str, str], Fragment]:
        """Return this process's fragments by parameter and kind; a fragment has size 0 if it holds nothing.

        Replicas hold disjoint ranges at stages 1 to 3, and everything at stage 0.
        """
        found = {}
        for name, place in self.places().items():
            values = self._values(place)
            if self.islands is not None:
                values[OWN_WEIGHT] = values[WEIGHT.name]
                values |= self.islands.kept.numbers_of(name)
            for kind, numbers in values.items():
                found[name, kind] = Fragment(place.start, numbers)
        return found

    def master_weights(self) -> dict[str, Tensor]:
        """Return this process's part of the master weights by parameter, flat and live."""
        names = [name for name, _ in self._model.named_parameters()]
        fragments = self.fragments()
        return {name: fragments[name, WEIGHT.name].numbers for name in names}

    def gradients(self) -> dict[str, Tensor]:
        """Return this process's part of the gradients of an update by parameter, flat and live."""
        found = {}
        for name, place in self.places().items():
            held = place.weight is not None and place.weight.grad is not None
            numbers = place.weight.grad.view(-1) if held else torch.empty(0)  # type: ignore[union-attr]
            found[name] = numbers.narrow(0, place.offset, place.size) if held else numbers
        return found

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the live state that only this process has, by name."""
        return self.data_sync.tensors() | (self.islands.kept.tensors() if self.islands else {})

    @property
    def own_layout(self) -> str:
        """Describe the run as far as :meth:`own_tensors` depends on it; empty if there are none."""
        kept = filter(None, (self.data_sync.layout, self.islands.kept.layout if self.islands else ""))
        described = " ".join(kept)
        return f"{described} {self._layout}" if described else ""

    def load_own(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore what :meth:`own_tensors` returned on this process after ``step``. Collective."""
        device = next(self._model.parameters()).device
        tensors = {name: values.to(device) for name, values in tensors.items()}
        outer = {name: values for name, values in tensors.items() if name.startswith("islands.")}
        rest = {name: values for name, values in tensors.items() if name not in outer}
        if rest:
            self.data_sync.load(rest)
        if self.islands is not None:
            self.islands.kept.load(outer, step)

    def _values(self, place: Place) -> dict[str, Tensor]:
        if place.weight is None:
            return {kind.name: torch.empty(0) for kind in (WEIGHT, *self.optimizer.kinds)}
        values = {WEIGHT.name: place.weight.detach(), **self.optimizer.state_of(place.weight)}
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
    # The last partition is padded to the length of the others.
    size = max(0, min(size, parameter.ds_numel - start))
    return Place(zero.fp32_partitioned_groups_flat[group], offset, start, size)
