"""The continuation of a prompt as its tokens arrive: where it ends, and which part of it is final."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from caat.data.tokenizer import Tokenizer

# Decoding returns this for bytes that are not a whole character (yet).
INCOMPLETE = "\ufffd"
# Prompt tokens that are decoded with the continuation, which would lose its first space if decoded alone.
CONTEXT = 4

Ending = Literal["end of text", "stop", "length"]


class Continuation:
    """The continuation of one prompt up to the end-of-text token or a stop string; ``text`` excludes both.

    ``ends``: the tokens that end a text, if the model has others than that of its tokenizer.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str], ends: Collection[int] = ()
    ) -> None:
        self._tokenizer, self._stop, self._ends = tokenizer, stop, {tokenizer.eos_id(), *ends}
        # Decoding skips special tokens, such as the one that ends a turn: their text would never be found.
        self._stop_tokens = {tokenizer.special_id(text) for text in stop} - {None}
        # A context that begins within a character of up to four byte tokens spoils those that follow.
        starts = range(max(0, len(prompt) - CONTEXT), max(-1, len(prompt) - CONTEXT - 4), -1)
        whole = (start for start in starts if INCOMPLETE not in tokenizer.decode(list(prompt[start:])))
        start = next(whole, starts[0])
        self._context = list(prompt[start:])
        self._skip = len(tokenizer.decode(self._context))
        self.tokens: list[int] = []
        self.text = ""
        # The text up to the last whole character.
        self._whole = ""
        self.ending: Ending | None = None
        self._shown = 0

    @property
    def ended(self) -> bool:
        return self.ending is not None

    def add(self, token: int) -> str:
        """Add the next token (ignored after the end) and return the text that has become final."""
        if self.ended:
            return ""
        if token in self._ends:
            self.ending = "end of text"
            return self._show(len(self.text))
        if token in self._stop_tokens:
            self.ending = "stop"
            return self._show(len(self.text))
        self.tokens.append(token)
        self.text = self._tokenizer.decode(self._context + self.tokens)[self._skip :]
        whole = self.text.rstrip(INCOMPLETE)
        if whole != self.text and not whole.startswith(self._whole):
            # Some tokenizers then decode the whole characters of a run of bytes like the last, which is not.
            self.text, whole = self._whole + INCOMPLETE, self._whole
        self._whole = whole
        found = [place for stop in self._stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.text, self.ending = self.text[: min(found)], "stop"
            return self._show(len(self.text))
        return self._show(self._certain())

    def finish(self) -> str:
        """End the text, as no token follows, and return the part that was held back."""
        if self.ended:
            return ""
        self.ending = "length"
        return self._show(len(self.text))

    def _certain(self) -> int:
        """Return the length of text that no later token changes: no partial character or stop string."""
        begun = [
            length
            for stop in self._stop
            for length in range(1, len(stop))
            if self._whole.endswith(stop[:length])
        ]
        return len(self._whole) - max(begun, default=0)

    def _show(self, until: int) -> str:
        start, self._shown = self._shown, max(self._shown, until)
        return self.text[start : self._shown]
