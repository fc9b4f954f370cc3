"""The interface of optimizers to training, saving and resuming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from inspect import unwrap
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from caat.optim.kinds import StateKind
from caat.optim.places import Place


class Optimizer(torch.optim.Optimizer):
    """A mixin for torch's optimizers: ``class AdamW(Optimizer, torch.optim.AdamW)``.

    DeepSpeed puts its flat ranges of the weights into ``param_groups``; :meth:`state_of` returns their
    state. A group is ``replicated`` if all tensor-parallel processes of a replica hold its weights.
    """

    # Both are written to checkpoints.
    name: ClassVar[str]
    kinds: tuple[StateKind, ...]
    # Set by the engine: where DeepSpeed has put each parameter, by name.
    places: Mapping[str, Place]
    # Set by the engine: numbers of these places that only pad the vocabulary. No gradient may move them.
    padding: Mapping[str, Sequence[slice]] = MappingProxyType({})
    # Set by the engine to skip a step with a non-finite loss: DeepSpeed itself checks only gradients.
    skip = False
    # Set by the engine: how often DeepSpeed calls `step` in a training step, each time with other groups.
    # With more than 1, the update waits for the last call, so that it sees all weights at once.
    calls = 1
    # Set by the engine: changes all gradients just before an update.
    compensate: Callable[[], None] | None = None
    # Set by the engine if a codec makes the gradients of replicated weights differ between tensor-parallel
    # processes: it makes them equal, in place.
    agree: Callable[[Sequence[Tensor]], None] | None = None

    # Nothing here compiles an optimizer. At their first call, torch's methods would import its compiler, only
    # to exclude themselves from it. That takes two seconds in every process.
    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._resumed_steps = 0
        # By weight: DeepSpeed may call `step` once per parameter group.
        self._taken: Counter[Tensor] = Counter()
        # Groups of the calls of this training step so far, with the gradients of their weights.
        self._waiting: list[tuple[dict, list[Tensor | None]]] = []
        self._called = 0
        # Number of training steps that have ended, skipped ones included.
        self.ended = 0

    def step(self, closure=None):  # type: ignore[override]
        if self.skip:
            return
        if self.agree is not None:
            replicated = [
                weight for group in self.param_groups if group["replicated"] for weight in group["params"]
            ]
            self.agree([weight.grad for weight in replicated if weight.grad is not None])
        self._taken.update(weight for group in self.param_groups for weight in group["params"])
        self._called += 1
        if self.calls == 1:
            self._compensate_and_update()
            return
        for group in self.param_groups:
            if group["params"]:
                weights = list(group["params"])
                self._waiting.append(({**group, "params": weights}, [weight.grad for weight in weights]))
        if self._called == self.calls:
            self._update_waiting()

    def _update_waiting(self) -> None:
        """Update the weights of all calls of this training step."""
        now, self.param_groups = self.param_groups, [group for group, _ in self._waiting]
        for group, gradients in self._waiting:
            # DeepSpeed has taken the gradients of earlier calls away.
            for weight, gradient in zip(group["params"], gradients, strict=True):
                weight.grad = gradient
        self._compensate_and_update()
        for group, _ in self._waiting[:-1]:
            for weight in group["params"]:
                weight.grad = None
        self.param_groups = now

    def _compensate_and_update(self) -> None:
        for name, ranges in self.padding.items():
            place = self.places[name]
            if place.weight is not None and place.weight.grad is not None:
                gradient = place.weight.grad.view(-1).narrow(0, place.offset, place.size)
                for padding in ranges:
                    gradient[padding] = 0
        if self.compensate is not None:
            self.compensate()
        self.update()

    def end_step(self) -> None:
        """End a training step, also one in which DeepSpeed did not call :meth:`step`."""
        self._waiting.clear()
        self._called = 0
        self.ended += 1

    @torch.no_grad()
    def update(self) -> None:
        """Update the weights that are in ``param_groups`` now; torch's own step unless overridden."""
        unwrap(super().step)(self)

    def step_of(self, weight: Tensor) -> int:
        """Return the number of the latest step of an entry of ``param_groups``, counted from 1."""
        return self._resumed_steps + self._taken[weight]

    @property
    def steps(self) -> int:
        """Number of steps taken, skipped ones not counted. Set when resuming, after the state exists."""
        return self._resumed_steps + max(self._taken.values(), default=0)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._resumed_steps = self.ended = steps
        self._taken.clear()

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the live kinds of ``weight``, each in its shape; create them if necessary.

        ``weight`` is an entry of ``param_groups``: a parameter, or a flat range of several parameters.
        """
        raise NotImplementedError
