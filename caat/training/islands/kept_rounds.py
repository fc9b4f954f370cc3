"""The state of an island that is a run of its own, in its checkpoints: its rounds and its residuals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from caat.training.islands.kept import Kept
from caat.training.islands.message import Message
from caat.training.islands.rounds import Exchange
from conf.islands import IslandsConfig

_ROUNDS = "islands.rounds"


class Rounds(Protocol):
    """An island of its own, as far as checkpoints see it."""

    messages: list[Message]
    settings: IslandsConfig
    exchange: Exchange
    rounds: int

    @property
    def in_flight(self) -> bool:
        """Whether a round has been asked for and is not applied yet."""
        ...

    def wait(self) -> None:
        """Wait for the round in flight."""
        ...


class KeptRounds(Kept):
    """What is saved of ``islands`` in addition to anchor, velocity and own weights.

    A round in flight is not saved: a resumed run asks for a new one.
    """

    # The number of rounds tells how recent the anchor is.
    always = (_ROUNDS,)

    def __init__(self, islands: Rounds, *, momentum: bool) -> None:
        super().__init__(islands.messages, islands.settings, 1, momentum=momentum)
        self._joined = islands

    @property
    def layout(self) -> str:
        """Describe the settings that :meth:`tensors` depends on."""
        s = self._joined.settings
        return f"an island of its own islands.codec={s.codec} islands.feedback={s.feedback}"

    def tensors(self) -> dict[str, Tensor]:
        """Return the number of rounds, and the residuals. Waits for a round in flight, but leaves it out."""
        found = {_ROUNDS: torch.tensor([self._joined.rounds])}
        exchange = self._joined.exchange
        self._joined.wait()
        for number, feedback in enumerate(exchange.feedbacks):
            if feedback is not None:
                residuals = exchange.before[number] if self._joined.in_flight else feedback.residuals
                found |= {f"islands.{number}.residual": values for values in residuals.values()}
        return found

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore what :meth:`tensors` returned on this process."""
        for name, values in tensors.items():
            if name == _ROUNDS:
                self._joined.rounds = int(values)
                continue
            feedback = self._joined.exchange.feedbacks[int(name.split(".")[1])]
            assert feedback is not None
            held = self._joined.messages[int(name.split(".")[1])].anchor
            feedback.residuals["change", len(held)] = values.cpu().float()
