"""The state of outer steps in checkpoints: kinds of state by parameter, and tensors of one process alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from caat.optim.kinds import WEIGHT, StateKind
from caat.parallel.background import nothing
from caat.training.data_sync_state import memories_by_name, restore_memory
from caat.training.islands.message import Message
from conf.islands import IslandsConfig

# The kinds of state that checkpoints hold in addition to the anchor.
OWN_WEIGHT, VELOCITY = "island_weight", "velocity"


class Kept:
    """What is saved and restored of ``messages``, which belong to one of ``islands`` islands."""

    # The names of :meth:`tensors` that are the same on all processes and restored in every layout.
    always: tuple[str, ...] = ()

    def __init__(
        self, messages: Sequence[Message], settings: IslandsConfig, islands: int, *, momentum: bool
    ) -> None:
        self._messages, self._settings, self._islands, self._momentum = messages, settings, islands, momentum

    def numbers_of(self, name: str) -> dict[str, Tensor]:
        """Return live views of a parameter's anchor, and of its velocity if there is one, by kind."""
        for message in self._messages:
            if name in message.weights:
                at = list(message.weights).index(name)
                found = {WEIGHT.name: message.split(message.anchor)[at]}
                if message.velocity is not None:
                    found[VELOCITY] = message.split(message.velocity)[at]
                return found
        kinds = [WEIGHT.name, *([VELOCITY] if self._momentum else [])]
        return {kind: torch.empty(0) for kind in kinds}

    @property
    def kinds(self) -> tuple[StateKind, ...]:
        """The kinds of state that outer steps add."""
        velocity = (StateKind(VELOCITY),) if self._momentum else ()
        return (*velocity, StateKind(OWN_WEIGHT, island=True))

    @property
    def layout(self) -> str:
        """Describe the settings that :meth:`tensors` depends on; empty if there are no such tensors."""
        s = self._settings
        if s.codec == "none" and not s.lag:
            return ""
        exchanges = f"islands={self._islands} every={s.every} fragments={s.fragments} lag={s.lag}"
        return f"{exchanges} islands.codec={s.codec} islands.feedback={s.feedback}"

    def tensors(self) -> dict[str, Tensor]:
        """Return what outer steps keep in this process alone: residuals, and sums that are not applied yet.

        Waits for exchanges in flight.
        """
        found: dict[str, Tensor] = {}
        for message in self._messages:
            if message.wait is not None:
                # Until then, the exchange changes what its codec remembers.
                message.wait()
        for number, message in enumerate(self._messages):
            if message.reduction is not None:
                named = memories_by_name(message.reduction)
                found |= {f"islands.{number}.{name}": values for name, values in named.items()}
            if message.wait is not None:
                assert message.change is not None and message.own is not None
                found[f"islands.{number}.change"] = message.change
                found[f"islands.{number}.own"] = message.own
            for name, values in (("origin", message.origin), ("own_velocity", message.own_velocity)):
                if values is not None:
                    found[f"islands.{number}.{name}"] = values
        return found

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore what :meth:`tensors` returned on this process after ``step``."""
        for name, values in tensors.items():
            _, number, kind = name.split(".", 2)
            message = self._messages[int(number)]
            if kind in ("origin", "own_velocity"):
                setattr(message, kind, values.to(message.anchor))
            elif kind in ("change", "own"):
                setattr(message, kind, values.to(message.anchor))
                message.wait = nothing
                started = range(step, step - self._settings.lag, -1)
                message.started = next(s for s in started if self._settings.due(s, message.fragment))
            else:
                assert message.reduction is not None
                restore_memory(message.reduction, kind, values)
