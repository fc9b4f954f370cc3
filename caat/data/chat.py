"""Renders conversations as text, and finds the assistant's words in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from caat.data.huggingface_tokenizer import SETTINGS, read_settings, read_template
from caat.data.tokenizer import END, START, load_tokenizer
from conf.checks import named_line, require
from conf.data import DataConfig

# The template that needs none: a line for each message, `Role: content`, and the assistant's ended by </s>.
PLAIN = "plain"
ROLES = ("system", "user", "assistant")
# Templates may mark the assistant's words themselves.
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")

# Takes the place of a message's words, to find where they begin: unlike these, it occurs nowhere else.
PLACE = "caat-finds-this"

Message = dict[str, Any]


class Rendered(NamedTuple):
    """A text, and the ranges [first, last) of its characters that count as targets."""

    text: str
    counted: list[tuple[int, int]]


class Chats:
    """Renders messages by ``template``, a Jinja template, or plainly if it is None.

    Templates come from strangers: `transformers` runs them in Jinja's sandbox, where they reach no files and
    no Python objects. ``specials`` are the tokens that they use by name, bos_token and eos_token at least.
    """

    def __init__(self, template: str | None, specials: dict[str, str]) -> None:
        self.template, self._specials = template, specials
        require(
            template is None or find_spec("transformers") is not None,
            "the chat template of the tokenizer needs transformers: pip install 'transformers>=5.0', or give "
            "data.chat_template=plain",
        )

    @staticmethod
    def of(config: DataConfig) -> Chats:
        """Return the renderer for ``config``. Raise ``ValueError`` if its template cannot be read."""
        path = Path(config.tokenizer).expanduser() if config.tokenizer else None
        specials = {"bos_token": START, "eos_token": END}
        if path is not None:
            tokenizer = load_tokenizer(path)
            names = read_settings(path.with_name(SETTINGS)).items()
            specials = {name: _spelled(token) for name, token in names if name.endswith("_token")}
            specials["bos_token"] = tokenizer.id_to_piece(tokenizer.bos_id())
            specials["eos_token"] = tokenizer.id_to_piece(tokenizer.eos_id())
        return Chats(find_template(config), specials)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Return the text of ``messages``, without white space at its end, and the assistant's part of it.

        The end of the assistant's turn counts too, or no model would learn to stop. Raises ``ValueError`` if
        the template fails, or if the assistant's words cannot be told from the rest.
        """
        if self.template is None:
            return self._plain(messages)
        if GENERATION.search(self.template):
            text, ranges = self._apply(messages, return_assistant_tokens_mask=True)
            return Rendered(text.rstrip(), [(first, last) for first, last in ranges if last > first])
        text, _ = self._apply(messages)
        ranges = [
            self._range(messages, number, text)
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        return Rendered(text.rstrip(), ranges)

    def _range(self, messages: Sequence[Message], number: int, text: str) -> tuple[int, int]:
        """Return the characters of ``text`` that are message ``number`` and the end of its turn."""
        remedy = (
            ", so that the assistant's words cannot be found: give data.chat_template=plain, or a template "
            "that encloses them in {% generation %} and {% endgeneration %}"
        )
        through = self._apply(messages[: number + 1])[0].rstrip()
        require(
            text.startswith(through),
            f"the chat template changes earlier text when message {number + 2} follows{remedy}",
        )
        if number == 0:
            # Nothing comes before, and many templates render no empty conversation.
            before, marked, _ = self._apply([{**messages[0], "content": PLACE}])[0].partition(PLACE)
            words = messages[0]["content"].strip()
            require(
                bool(marked) and through.startswith(before) and words in through[len(before) :],
                f"the chat template changes the words of message 1{remedy}",
            )
        else:
            before, _ = self._apply(messages[:number], add_generation_prompt=True)
            require(
                text.startswith(before) and len(through) > len(before),
                f"the chat template does not begin message {number + 1} like its generation prompt{remedy}",
            )
        return len(before), len(through)

    def _plain(self, messages: Sequence[Message]) -> Rendered:
        text, ranges = "", []
        for message in messages:
            text += f"{message['role'].capitalize()}:"
            first = len(text)
            text += f" {message['content']}"
            if message["role"] == "assistant":
                text += self._specials["eos_token"]
                ranges.append((first, len(text)))
            text += "\n"
        return Rendered(text.rstrip(), ranges)

    def _apply(self, messages: Sequence[Message], **options: bool) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, ranges = render_jinja_template(
                [list(messages)], chat_template=self.template, **options, **self._specials
            )
        except Exception as error:  # a template may fail in any way
            raise ValueError(
                f"the chat template fails ({named_line(error)}): correct the messages, or give "
                "data.chat_template=plain"
            ) from None
        return texts[0], ranges[0] if ranges else []


def check_messages(messages: Any, field: str) -> list[Message]:
    """Return ``messages`` if they are a conversation in which the assistant speaks, else ``ValueError``."""
    shape = f'{{"role": ..., "content": ...}}, both text (data.messages_field={field})'
    require(
        isinstance(messages, list),
        f"the messages are a {type(messages).__name__}, but must be a list of {shape}",
    )
    for number, message in enumerate(messages, 1):
        require(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str),
            f"message {number} is not {shape}: correct it, or remove the row",
        )
        require(
            message["role"] in ROLES,
            f"message {number} has the role {message['role']}: use {', '.join(ROLES)}",
        )
        require(
            message["role"] != "assistant" or not _is_blank(message["content"]),
            f"message {number}, the assistant's, is empty: remove it",
        )
    require(
        any(message["role"] == "assistant" for message in messages),
        "no message is the assistant's, so nothing counts in the loss: remove the row",
    )
    return messages


def find_template(config: DataConfig) -> str | None:
    """Return the text of the chat template, None for the plain one. Raise ``ValueError`` if it is missing."""
    if config.chat_template == PLAIN:
        return None
    if config.chat_template is None:
        return read_template(Path(config.tokenizer).expanduser()) if config.tokenizer else None
    path = Path(config.chat_template).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(
            f"data.chat_template={config.chat_template} cannot be read ({reason}): give a Jinja file or plain"
        ) from None


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _spelled(token: Any) -> str:
    return token["content"] if isinstance(token, dict) and "content" in token else str(token)
