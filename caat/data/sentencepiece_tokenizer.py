"""SentencePiece models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor

from caat.data.huggingface_tokenizer import last_place

# A character that no piece holds together with others.
LINE_END = "\n"


class SentencePieceTokenizer(SentencePieceProcessor):
    """SentencePiece as a :class:`~caat.data.tokenizer.Tokenizer`."""

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        # NumPy arrays directly: going through Python lists is 10 % slower.
        return self.encode(texts, return_type="numpy", add_bos=True, add_eos=True, num_threads=1)

    def encode_places(self, text: str) -> tuple[list[int], list[int]]:
        tokens, places = [], []
        first = 0
        for part in re.split(f"({'|'.join(map(re.escape, self._specials))})", text):
            if part in self._specials:
                tokens.append(self._specials[part])
                places.append(first + len(part) - 1)
            elif part:
                # SentencePiece puts a space before a text. Within a document, that is not wanted.
                before = LINE_END if tokens and tokens[-1] != self.bos_id() else ""
                whole = (before + part).encode()
                # Offsets count bytes. Of a character that becomes several bytes, all but the last are empty.
                character = np.cumsum((np.frombuffer(whole, np.uint8) & 0xC0) != 0x80) - 1 - len(before)
                for piece in self.encode(before + part, return_type="proto").pieces:
                    if piece.end > len(before) or piece.begin == len(before):
                        tokens.append(piece.id)
                        at = min(last_place(piece.begin, piece.end), len(whole) - 1)
                        places.append(first + int(character[at]))
            first += len(part)
        return tokens, places

    @property
    def _specials(self) -> dict[str, int]:
        return {self.id_to_piece(number): number for number in (self.bos_id(), self.eos_id())}

    def special_id(self, text: str) -> int | None:
        number = self.piece_to_id(text)
        return number if self.is_control(number) and self.id_to_piece(number) == text else None


def load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    """Load a SentencePiece model; raises like :func:`caat.data.tokenizer.load_tokenizer`."""
    remedy = "give a SentencePiece model or a tokenizer.json, or leave data.tokenizer out to train one"
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the tokenizer {path} cannot be read ({error.strerror}): {remedy}") from error
    try:
        # An empty model would load and then print an error on every use.
        tokenizer = SentencePieceTokenizer(model_proto=model) if model else None
    except RuntimeError:
        tokenizer = None
    if tokenizer is None:
        raise ValueError(f"{path} is not a SentencePiece model: {remedy}")
    if tokenizer.bos_id() < 0 or tokenizer.eos_id() < 0:
        raise ValueError(f"{path} has no piece that begins or ends a document: {remedy}")
    return tokenizer
