"""The optimizer state of this process as it lies in DeepSpeed's memory, at every ZeRO stage.

Each stage cuts the state over the replicas in its own way, but always into ranges of the flattened
parameter. So one view serves all: saving copies the ranges out, loading copies them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# float32 master weights, and AdamW's first and second moment.
KINDS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Numbers ``[start, start + size)`` of a flattened parameter; ``values`` by kind are live views."""

    start: int
    size: int
    values: dict[str, Tensor]


def fragments(model: nn.Module, zero: Any, adam: torch.optim.Optimizer, stage: int) -> dict[str, Fragment]:
    """What this process holds of every parameter, by its name; size 0 where it holds nothing.

    ``zero`` is DeepSpeed's optimizer round ``adam``. Replicas hold disjoint ranges at stages 1 to 3, all of
    it at stage 0.
    """
    find = {0: _whole, 1: _mapped, 2: _mapped, 3: _partitioned}[stage]
    return {name: find(parameter, zero, adam) for name, parameter in model.named_parameters()}


def adam_steps(adam: torch.optim.Optimizer) -> int:
    """Steps that AdamW has taken: those that were not skipped."""
    return max((int(state["step"]) for state in adam.state.values() if "step" in state), default=0)


def set_adam_steps(adam: torch.optim.Optimizer, steps: int) -> None:
    """AdamW corrects its moments by them."""
    for state in adam.state.values():
        state["step"].fill_(steps)


def _whole(parameter: nn.Parameter, zero: Any, adam: torch.optim.Optimizer) -> Fragment:
    values = {kind: value.view(-1) for kind, value in _state(parameter, adam).items()}
    return Fragment(0, parameter.numel(), values)


def _mapped(parameter: Any, zero: Any, adam: torch.optim.Optimizer) -> Fragment:
    mapping = parameter._hp_mapping
    if mapping is None:
        return Fragment(0, 0, {})
    (flat,) = adam.param_groups[mapping.param_group_index]["params"]
    at = mapping.hp_fragment_address
    return _range(flat, at.start, at.numel, mapping.lp_fragment_address.start, adam)


def _partitioned(parameter: Any, zero: Any, adam: torch.optim.Optimizer) -> Fragment:
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = size * zero._get_param_partition_rank(parameter)
    # The last partitions are padded to the length of the others.
    size = max(0, min(size, parameter.ds_numel - start))
    return _range(zero.fp32_partitioned_groups_flat[group], offset, size, start, adam)


def _range(flat: Tensor, offset: int, size: int, start: int, adam: torch.optim.Optimizer) -> Fragment:
    state = _state(flat, adam)
    return Fragment(start, size, {kind: state[kind].narrow(0, offset, size) for kind in KINDS})


def _state(weight: Tensor, adam: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Master weight and moments; AdamW makes the moments at its first step, as here."""
    state = adam.state[weight]
    if not state:
        # The fused AdamW of a GPU counts there.
        state["step"] = torch.zeros((), device=weight.device if adam.defaults["fused"] else "cpu")
        state["exp_avg"] = torch.zeros_like(weight)
        state["exp_avg_sq"] = torch.zeros_like(weight)
    return {"weight": weight.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
