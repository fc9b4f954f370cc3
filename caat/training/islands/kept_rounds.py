"""The state of an island that is a run of its own, in its checkpoints: its rounds and its residuals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caat.training.islands.kept import Kept

if TYPE_CHECKING:
    from caat.training.islands.joined import JoinedIslands

_ROUNDS = "islands.rounds"


class KeptRounds(Kept):
    """What is saved of ``islands`` in addition to anchor, velocity and own weights.

    A round in flight is not saved: a resumed run asks for a new one.
    """

    def __init__(self, islands: JoinedIslands, *, momentum: bool) -> None:
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
        flight, exchange = self._joined.flight, self._joined.exchange
        self._joined.wait()
        for number, feedback in enumerate(exchange.feedbacks):
            if feedback is not None:
                residuals = exchange.before[number] if flight is not None else feedback.residuals
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
