"""Tokenizers: SentencePiece models, trained here with Llama's conventions, and Hugging Face's files."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

# In a prepared folder and in a checkpoint: a SentencePiece model, or a file of Hugging Face `tokenizers`.
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
# <unk>, <s>, </s> and one piece for every byte.
SMALLEST = 3 + 256


class Tokenizer(Protocol):
    """Between text and token numbers; method names are SentencePiece's."""

    def encode(self, text: str) -> list[int]:
        """No begin or end of a document is added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Begin and end of a document are left out."""

    def bos_id(self) -> int: ...

    def eos_id(self) -> int: ...

    def vocab_size(self) -> int:
        """One more than the largest token number."""

    def id_to_piece(self, number: int) -> str:
        """A token as the tokenizer spells it, with a sign of its own for a space."""

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Many at a time, on one thread: int32, each with its begin and end."""


def train_tokenizer(lines: Iterator[str], vocab_size: int, out: Path) -> None:
    """Train a tokenizer of exactly ``vocab_size`` pieces on ``lines`` and write it to ``out``.

    Every text can be encoded, and decodes to itself: characters outside the vocabulary become bytes,
    nothing is normalised (the one exception is U+2581, SentencePiece's own sign for a space, which
    decodes to a space). Numbers are split into digits. unk=0, bos=1, eos=2, no padding piece.
    All of ``lines`` is held in memory: the caller bounds it.

    Raises ``ValueError`` if ``vocab_size`` does not fit the text.
    """
    if vocab_size <= SMALLEST:
        raise ValueError(
            f"vocab_size={vocab_size} must be above {SMALLEST}: three special pieces and the 256 bytes "
            "come first"
        )
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # Longer lines would be skipped without a word.
            max_sentence_length=1 << 30,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_remedy(vocab_size, str(error))) from error
    aside = out.with_name(out.name + ".partial")
    aside.write_bytes(model.getvalue())
    os.replace(aside, out)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in ``path``: Hugging Face's if its name ends in .json, else a SentencePiece model.

    Raises ``ValueError`` if it is missing, corrupt or has no piece for the begin or the end of a document.
    """
    if path.suffix == ".json":
        from caat.data.huggingface_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path)
    from caat.data.sentencepiece_tokenizer import load_sentencepiece

    return load_sentencepiece(path)


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer of a checkpoint or a prepared folder; raises ``ValueError`` if it has none."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} holds no tokenizer: put its {' or '.join(TOKENIZER_FILES)} there")


def tokenizer_files(path: Path) -> dict[str, bytes]:
    """What a folder needs to hold of the tokenizer in ``path``: contents by file name.

    Raises ``ValueError`` as :func:`load_tokenizer` for a Hugging Face file.
    """
    if path.suffix == ".json":
        from caat.data.huggingface_tokenizer import huggingface_files

        return huggingface_files(path)
    return {TOKENIZER_FILES[0]: path.read_bytes()}


def _remedy(vocab_size: int, message: str) -> str:
    """A message of SentencePiece in the words of our settings."""
    if "too high" in message:
        largest = re.search(r"<= (\d+)", message)
        return (
            f"vocab_size={vocab_size} is too large for this text: lower it to "
            f"{largest.group(1) if largest else 'less'} at most (and the model's with it) or give more text"
        )
    if "smaller than required" in message:
        return (
            f"vocab_size={vocab_size} is too small for the characters of this text: "
            "raise it (and the model's with it)"
        )
    return f"no tokenizer of vocab_size={vocab_size} could be trained on this text: {message.strip()}"
