"""Documents of which only a part counts in the loss: rows with a prompt and a completion, or with a chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from caat.data.chat import Chats, Rendered, check_messages
from caat.data.marks import BEGINS, COUNTS
from caat.data.tokenizer import Tokenizer
from conf.checks import require
from conf.data import DataConfig

Row = dict[str, Any]
# Renders a row. Raises ``ValueError`` without naming the row.
Render = Callable[[Row], Rendered]


def renderer(config: DataConfig) -> Render:
    """Return the function that renders rows of ``config.format``, which is not text."""
    columns = list(config.columns.values())
    if config.format == "prompt":
        return partial(_prompt, names=columns)
    chats = Chats.of(config)
    return lambda row: chats.render(check_messages(row[columns[0]], columns[0]))


def from_text(text: str) -> Rendered:
    """Return what :func:`caat.data.row_files.to_text` stored."""
    return Rendered(*json.loads(text))


def encode_row(row: Rendered, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a document, int32, and their marks, uint8.

    The document is ``<s>``, the tokens of the text and ``</s>``; what the text has already is not repeated. A
    token counts if its last character does, and the ``</s>`` that is added if the token before it does.
    """
    tokens, places = tokenizer.encode_places(row.text)
    counts = np.zeros(len(row.text), dtype=np.uint8)
    for first, last in row.counted:
        counts[first:last] = COUNTS
    marks = list(counts[places])
    if tokens[:1] != [tokenizer.bos_id()]:
        tokens, marks = [tokenizer.bos_id(), *tokens], [0, *marks]
    if len(tokens) == 1 or tokens[-1] != tokenizer.eos_id():
        tokens, marks = [*tokens, tokenizer.eos_id()], [*marks, marks[-1]]
    marks[0] = BEGINS
    return np.array(tokens, dtype=np.int32), np.array(marks, dtype=np.uint8)


def _prompt(row: Row, names: list[str]) -> Rendered:
    prompt, completion = (row[name] for name in names)
    for name, text in zip(names, (prompt, completion), strict=True):
        require(isinstance(text, str), f"the column {name} holds a {type(text).__name__}, not text")
    require(bool(completion.strip()), f"the column {names[1]} is empty, so nothing counts: remove the row")
    return Rendered(prompt + completion, [(len(prompt), len(prompt) + len(completion))])
