"""Hugging Face's `tokenizer.json`, loaded with the package `tokenizers`, which executes no code from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from caat.storage.records import read_record

REMEDY = "give the tokenizer.json of a Hugging Face model, or a SentencePiece model"
SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# Files of a model folder that name the begin and end tokens, in order of preference. The last one names
# them by number.
NAMED_IN = (SETTINGS, "special_tokens_map.json", "config.json")


class HuggingFaceTokenizer:
    """A :class:`~caat.data.tokenizer.Tokenizer` from ``path``, with begin and end named by files next to it.

    The text of a special token, such as ``<|endoftext|>``, becomes that token, as in `transformers`. Raises
    ``ValueError`` if the file is missing or corrupt, or if no begin or end token is named.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"the tokenizer {path} cannot be read (no such file): {REMEDY}")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise ValueError(f"{path} is not a tokenizer.json ({error}): {REMEDY}") from error
        # Whoever saved the file may have set these; they would silently truncate documents.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self._bos, self._eos = (self._special(path, name) for name in ("bos", "eos"))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_places(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, [min(last_place(*each), len(text) - 1) for each in encoded.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def bos_id(self) -> int:
        return self._bos

    def eos_id(self) -> int:
        return self._eos

    def special_id(self, text: str) -> int | None:
        added = self.tokenizer.get_added_tokens_decoder().items()
        return next((number for number, token in added if token.special and token.content == text), None)

    def begin_and_end(self) -> tuple[str, str]:
        """Return the tokens :meth:`bos_id` and :meth:`eos_id` by name."""
        tokens = {number: token for token, number in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        return tokens[self._bos], tokens[self._eos]

    def vocab_size(self) -> int:
        return self._size

    def id_to_piece(self, number: int) -> str:
        return self.tokenizer.id_to_token(number) or f"<{number}>"

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([self._bos, *each.ids, self._eos], dtype=np.int32) for each in encoded]

    def _special(self, path: Path, name: str) -> int:
        """Return the number of the token that begins or ends a document."""
        file, token = named_token(path, name)
        if token is not None:
            number = self.tokenizer.token_to_id(token)
            if number is None:
                raise ValueError(f"{path.with_name(file)} names {name}_token {token}, which is not in {path}")
            return number
        number = read_settings(path.with_name(NAMED_IN[2])).get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is not int or not 0 <= number < self._size:
            raise ValueError(
                f"no file next to {path} names the token that {'begins' if name == 'bos' else 'ends'} a "
                f'document: add {{"{name}_token": "..."}} to {SETTINGS} in that folder'
            )
        return number


def last_place(first: int, end: int) -> int:
    """Return the last place of [first, end). An empty one is that of a byte of the character that follows."""
    return max(end - 1, first)


def named_token(path: Path, name: str) -> tuple[str, str | None]:
    """Return the file next to ``path`` that names its "bos" or "eos" token, and the token or None."""
    for file in NAMED_IN[:2]:
        token = read_settings(path.with_name(file)).get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str):
                raise ValueError(f"{path.with_name(file)} has {name}_token={token!r}, which must be a string")
            return file, token
    return SETTINGS, None


def huggingface_files(path: Path) -> dict[str, bytes]:
    """Return tokenizer.json and the settings file that `transformers` reads, which names begin and end."""
    tokenizer = HuggingFaceTokenizer(path)
    # This class uses tokenizer.json unchanged; LlamaTokenizer would override its rules.
    settings = {**_special_tokens(path), **read_settings(path.with_name(SETTINGS))}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if (template := read_template(path)) is not None:
        settings["chat_template"] = template
    # Third-party code, which `transformers` would ask the user to run.
    settings.pop("auto_map", None)
    settings["bos_token"], settings["eos_token"] = tokenizer.begin_and_end()
    return {
        "tokenizer.json": path.read_bytes(),
        SETTINGS: _as_json(settings).encode(),
    }


def _special_tokens(path: Path) -> dict[str, str]:
    """Return the special tokens, such as that for padding, that only a file of its own may name."""
    found = read_settings(path.with_name(NAMED_IN[1])).items()
    tokens = {name: each.get("content") if isinstance(each, dict) else each for name, each in found}
    return {
        name: token for name, token in tokens.items() if name.endswith("_token") and isinstance(token, str)
    }


def _as_json(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def write_template(path: Path, template: str | None) -> None:
    """Make ``template``, or none, the chat template next to the tokenizer ``path``."""
    path.with_name(TEMPLATE).unlink(missing_ok=True)
    if path.suffix != ".json":
        if template is not None:
            path.with_name(TEMPLATE).write_text(template, encoding="utf-8")
        return
    settings = read_settings(path.with_name(SETTINGS))
    settings.pop("chat_template", None)
    if template is not None:
        settings["chat_template"] = template
    path.with_name(SETTINGS).write_text(_as_json(settings), encoding="utf-8")


def read_template(path: Path) -> str | None:
    """Return the chat template that the files next to the tokenizer ``path`` hold, if any."""
    if (file := path.with_name(TEMPLATE)).is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ValueError(f"{file} cannot be read ({reason}): correct or remove it") from None
    found = read_settings(path.with_name(SETTINGS)).get("chat_template")
    if isinstance(found, list):
        named = [each for each in found if isinstance(each, dict) and each.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def read_settings(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``, empty if there is no such file."""
    return read_record(path, dict[str, Any]) if path.is_file() else {}
