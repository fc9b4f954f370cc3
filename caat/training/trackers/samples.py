"""Samples of held-out text with the model's loss on every token."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from pathlib import Path

from torch import Tensor

from caat.data.marks import IGNORED
from caat.data.tokenizer import load_tokenizer

# Tokens shown from the end of each sequence: those of the context, and those shown with their losses.
CONTEXT, CONTINUATION = 64, 32


@dataclass(frozen=True)
class Sample:
    """The end of a held-out sequence; ``losses`` are those of ``pieces``, which count, in nats."""

    context: str
    continuation: str
    pieces: tuple[str, ...]
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses) if self.losses else nan

    @property
    def spelled(self) -> str:
        """Each piece with its loss."""
        return "  ".join(f"{piece} {loss:.2f}" for piece, loss in zip(self.pieces, self.losses, strict=True))


class Samples:
    """The first ``count`` sequences of each validation on this rank.

    Validation computes their losses anyway, so showing them needs no extra pass and no collective.
    """

    def __init__(self, tokenizer: Path, count: int) -> None:
        self._tokenizer = load_tokenizer(tokenizer)
        self._count = count
        self._taken: list[Sample] = []

    def see(self, tokens: Tensor, targets: Tensor, losses: Tensor) -> None:
        """Take samples from the rows of one validation batch, [rows, sequence] each."""
        for row in range(min(len(tokens), self._count - len(self._taken))):
            self._taken.append(self._sample(tokens[row], targets[row], losses[row]))

    def take(self) -> list[Sample]:
        """Return the samples taken since the last call."""
        taken, self._taken = self._taken, []
        return taken

    def _sample(self, tokens: Tensor, targets: Tensor, losses: Tensor) -> Sample:
        # The last target is no input: if it does not count, it is not known.
        text = [*tokens.tolist(), *(number for number in targets[-1:].tolist() if number != IGNORED)]
        start = max(1, len(text) - CONTINUATION)
        shown = [at for at in range(start, len(text)) if targets[at - 1] != IGNORED]
        return Sample(
            self._tokenizer.decode(text[max(0, start - CONTEXT) : start]),
            self._tokenizer.decode(text[start:]),
            tuple(self._spell(text[at]) for at in shown),
            tuple(float(losses[at - 1]) for at in shown),
        )

    def _spell(self, number: int) -> str:
        piece = self._tokenizer.id_to_piece(number)
        # A space is U+2581 to SentencePiece, U+0120 to byte-level tokenizers.
        return piece.replace("\u2581", "_").replace("\u0120", "_")
