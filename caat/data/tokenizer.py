"""The tokenizer: SentencePiece BPE with Llama's conventions."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# <unk>, <s>, </s> and one piece for every byte.
SMALLEST = 3 + 256


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
            f"data.vocab_size={vocab_size} must be above {SMALLEST}: three special pieces and the 256 bytes "
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


def load_tokenizer(path: Path) -> SentencePieceProcessor:
    """The tokenizer in ``path``; raises ``ValueError`` if it is missing, corrupt or has no <s> or </s>."""
    from sentencepiece import SentencePieceProcessor

    remedy = "give a SentencePiece model, or leave data.tokenizer out and one is trained on the text"
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the tokenizer {path} cannot be read ({error.strerror}): {remedy}") from error
    try:
        # An empty model would load, and complain on stderr at every use.
        tokenizer = SentencePieceProcessor(model_proto=model) if model else None
    except RuntimeError:
        tokenizer = None
    if tokenizer is None:
        raise ValueError(f"{path} is not a SentencePiece model: {remedy}")
    if tokenizer.bos_id() < 0 or tokenizer.eos_id() < 0:
        raise ValueError(f"{path} has no piece for the begin or the end of a document: {remedy}")
    return tokenizer


def find_tokenizer(checkpoint: Path) -> Path:
    """The tokenizer of a checkpoint folder; raises ``ValueError`` if it has none."""
    path = checkpoint / "tokenizer.model"
    if not path.is_file():
        raise ValueError(f"{checkpoint} has no tokenizer.model: copy there the one that it was trained with")
    return path


def _remedy(vocab_size: int, message: str) -> str:
    """A message of SentencePiece in the words of our settings."""
    if "too high" in message:
        largest = re.search(r"<= (\d+)", message)
        return (
            f"data.vocab_size={vocab_size} is too large for this text: lower it to "
            f"{largest.group(1) if largest else 'less'} at most (and the model's with it) or give more text"
        )
    if "smaller than required" in message:
        return (
            f"data.vocab_size={vocab_size} is too small for the characters of this text: "
            "raise it (data.vocab_size=... and the model's with it)"
        )
    return f"no tokenizer of data.vocab_size={vocab_size} could be trained on this text: {message.strip()}"
