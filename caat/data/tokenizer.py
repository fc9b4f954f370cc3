"""Tokenizers: SentencePiece models, trained here with Llama's conventions, and Hugging Face tokenizers."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

# File names in a prepared folder and in a checkpoint: SentencePiece model, Hugging Face `tokenizers` file.
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
# Pieces that every vocabulary needs: <unk>, <s>, </s> and one for each byte.
SMALLEST = 3 + 256
# How a tokenizer trained here spells the tokens that begin and end a document.
START, END = "<s>", "</s>"


class Tokenizer(Protocol):
    """Converts between text and token numbers; method names are those of SentencePiece."""

    def encode(self, text: str) -> list[int]:
        """Encode ``text`` without adding begin or end tokens."""

    def encode_places(self, text: str) -> tuple[list[int], list[int]]:
        """Encode ``text``; return the tokens, and for each the number of the character that it ends with.

        The text of a begin or end token becomes that token.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ``ids``, skipping begin and end tokens."""

    def bos_id(self) -> int: ...

    def eos_id(self) -> int: ...

    def special_id(self, text: str) -> int | None:
        """Return the token that is ``text`` and that :meth:`decode` skips; None if there is none."""

    def vocab_size(self) -> int:
        """Return the largest token number plus one."""

    def id_to_piece(self, number: int) -> str:
        """Return a token as the tokenizer spells it, with a special character for a space."""

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode many documents on one thread, as int32, each with its begin and end token."""


def train_tokenizer(lines: Iterator[str], vocab_size: int, out: Path) -> None:
    """Train a tokenizer of exactly ``vocab_size`` pieces on ``lines`` and write it to ``out``.

    Every text can be encoded and decodes to itself: characters outside the vocabulary become bytes, and
    nothing is normalised (the only exception is U+2581, SentencePiece's character for a space, which
    decodes to a space). Numbers are split into digits. unk=0, bos=1, eos=2, no padding piece.
    All of ``lines`` is held in memory; the caller must limit its size.

    Raises ``ValueError`` if ``vocab_size`` does not fit the text.
    """
    if vocab_size <= SMALLEST:
        raise ValueError(
            f"vocab_size={vocab_size} must be above {SMALLEST}: it includes three special pieces and the 256 "
            "bytes"
        )
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    failed: list[Exception] = []

    def kept() -> Iterator[str]:
        # SentencePiece would wrap an error of the text in a message of its own.
        try:
            yield from lines
        except Exception as error:
            failed.append(error)
            raise

    try:
        SentencePieceTrainer.train(
            sentence_iterator=kept(),
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
            # SentencePiece silently skips longer lines.
            max_sentence_length=1 << 30,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failed:
            raise failed[0] from None
        raise ValueError(_remedy(vocab_size, str(error))) from error
    aside = out.with_name(out.name + ".partial")
    aside.write_bytes(model.getvalue())
    os.replace(aside, out)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer in ``path``: a Hugging Face one if its name ends in .json, else SentencePiece.

    Raises ``ValueError`` if it is missing, corrupt or has no begin or end token.
    """
    if path.suffix == ".json":
        from caat.data.huggingface_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path)
    from caat.data.sentencepiece_tokenizer import load_sentencepiece

    return load_sentencepiece(path)


def find_tokenizer(folder: Path) -> Path:
    """Return the tokenizer file of a checkpoint or prepared folder. Raise ``ValueError`` if it has none."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} holds no tokenizer: put its {' or '.join(TOKENIZER_FILES)} there")


def tokenizer_difference(one: Path, other: Path) -> str:
    """Say how the tokens of the tokenizer file ``one`` differ from those of ``other``; empty if they do not.

    A SentencePiece model names the tokens that begin and end a document. For a tokenizer.json, files next to
    it do. Raises ``ValueError`` like :func:`load_tokenizer`.
    """
    if one.read_bytes() != other.read_bytes():
        return f"its file is not the same as {other}"
    if one.suffix != ".json":
        return ""
    ours, theirs = (_begin_and_end(load_tokenizer(path)) for path in (one, other))
    if ours != theirs:
        return (
            f"it begins and ends documents with {' and '.join(ours)}, and {other} with {' and '.join(theirs)}"
        )
    return ""


def _begin_and_end(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.id_to_piece(number) for number in (tokenizer.bos_id(), tokenizer.eos_id())]


def tokenizer_files(path: Path) -> dict[str, bytes]:
    """Return the files that make up the tokenizer in ``path``, as contents by file name.

    A chat template next to it is kept. Raises ``ValueError`` like :func:`load_tokenizer` for a Hugging Face
    file.
    """
    if path.suffix == ".json":
        from caat.data.huggingface_tokenizer import huggingface_files

        return huggingface_files(path)
    from caat.data.huggingface_tokenizer import TEMPLATE, read_template

    files = {TOKENIZER_FILES[0]: path.read_bytes()}
    if (template := read_template(path)) is not None:
        files[TEMPLATE] = template.encode()
    return files


def _remedy(vocab_size: int, message: str) -> str:
    """Translate an error message of SentencePiece into the terms of our settings."""
    if "too high" in message:
        largest = re.search(r"<= (\d+)", message)
        return (
            f"vocab_size={vocab_size} is too large for this text: lower it (and the model's) to at most "
            f"{largest.group(1) if largest else 'a smaller value'}, or give more text"
        )
    if "smaller than required" in message:
        return (
            f"vocab_size={vocab_size} is too small for the characters of this text: "
            "raise it (and the model's)"
        )
    return f"no tokenizer of vocab_size={vocab_size} could be trained on this text: {message.strip()}"
