"""Choose the tokenizer file of a Hugging Face folder: the one that gives the model's token numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from caat.data.huggingface_tokenizer import SETTINGS, HuggingFaceTokenizer, named_token
from caat.data.sentencepiece_export import same_numbers
from caat.data.sentencepiece_tokenizer import SentencePieceTokenizer, load_sentencepiece
from caat.data.tokenizer import TOKENIZER_FILES, find_tokenizer
from caat.storage.records import Whole, read_record
from conf.checks import require

ADDED = "added_tokens.json"


@dataclass(frozen=True)
class AddedToken:
    content: str


@dataclass(frozen=True)
class Settings:
    """The fields of tokenizer_config.json that change a tokenizer."""

    added_tokens_decoder: dict[str, AddedToken] = field(default_factory=dict)


def choose_tokenizer(folder: Path) -> Path:
    """Return the tokenizer that `transformers` uses: tokenizer.json or an equivalent SentencePiece model.

    Raises ``ValueError`` if there is none, if it cannot be loaded, or if the folder has no tokenizer.json and
    files next to its SentencePiece model change the tokenizer.
    """
    path, fast = find_tokenizer(folder), folder / TOKENIZER_FILES[1]
    if path == fast:
        return fast
    if not fast.is_file():
        _check_alone(load_sentencepiece(path), path)
        return path
    theirs = HuggingFaceTokenizer(fast)
    try:
        ours = load_sentencepiece(path)
    except ValueError:
        return fast  # tokenizer.model is a tiktoken file, as in Llama 3
    same = (ours.vocab_size(), ours.bos_id(), ours.eos_id()) == (
        theirs.vocab_size(),
        theirs.bos_id(),
        theirs.eos_id(),
    )
    return path if same and same_numbers(ours, theirs.tokenizer) and _same_added(ours, theirs) else fast


def _same_added(ours: SentencePieceTokenizer, theirs: HuggingFaceTokenizer) -> bool:
    """Return whether both read added tokens alike. SentencePiece never reads a control piece from text."""
    added = {token.content for token in theirs.tokenizer.get_added_tokens_decoder().values()}
    marks = {ours.id_to_piece(number) for number in (ours.bos_id(), ours.eos_id(), ours.unk_id())}
    return all(ours.encode(text) == theirs.encode(text) for text in sorted(added - marks))


def _check_alone(tokenizer: SentencePieceTokenizer, path: Path) -> None:
    remedy = (
        "which would be lost: load the tokenizer with transformers and save it there with save_pretrained(), "
        "which writes tokenizer.json"
    )
    for file, number, token in _added(path):
        known = number < tokenizer.vocab_size() and tokenizer.id_to_piece(number) == token
        require(known, f"{path.with_name(file)} adds the token {token} ({number}) to {path}, {remedy}")
    for name, number in (("bos", tokenizer.bos_id()), ("eos", tokenizer.eos_id())):
        file, named = named_token(path, name)
        require(
            named in (None, tokenizer.id_to_piece(number)),
            f"{path.with_name(file)} names {name}_token {named}, but {path} has "
            f"{tokenizer.id_to_piece(number)}, {remedy}",
        )


def _added(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (file, number, token) for the tokens that files next to ``path`` add."""
    if path.with_name(SETTINGS).is_file():
        for number, token in read_record(path.with_name(SETTINGS), Settings).added_tokens_decoder.items():
            require(
                number.isdecimal(), f"{path.with_name(SETTINGS)} gives an added token the number {number}"
            )
            yield SETTINGS, int(number), token.content
    if path.with_name(ADDED).is_file():
        yield from (
            (ADDED, number, token)
            for token, number in read_record(path.with_name(ADDED), dict[str, Whole]).items()
        )
