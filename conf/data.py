"""Settings of the text and its tokenizer: `data.*`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from conf.checks import check_path, require, require_choice, require_positive
from conf.field import setting

FORMATS = ("text", "prompt", "chat")


@dataclass
class DataConfig:
    """The text to train on. It is tokenised once per combination of settings, into ``dir``."""

    path: str | None = setting(
        None,
        "Text to train on: a text, jsonl or parquet file, a folder or glob of them, a folder made by "
        "`caat tokenize`, or the name of a Hugging Face dataset. Default: the quick-start text "
        "(Wikipedia introductions).",
    )
    mixture: Any = setting(
        None,
        "Several sources in place of path, by name, with their weights: {web:0.7,code:0.3}. Every global "
        "batch holds each in its share: its weight divided by the sum of all.",
    )
    sources: Any = setting(
        None,
        "The texts of the mixture, each like path: {web:tokens/web,code:src/*.jsonl}.",
    )
    subset: str | None = setting(None, "Configuration of a Hugging Face dataset.")
    split: str = setting("train", "Split of a Hugging Face dataset.")
    streaming: bool = setting(
        False,
        "Prepare a Hugging Face dataset while it is read, in blocks of 256 MB of text, without a copy of it "
        "on this machine. A tokenizer is trained on the first block.",
    )
    format: str | None = setting(
        None,
        "What a document is: text (the default), or a row of which a part counts in the loss: the completion "
        "of a prompt (prompt), or the assistant's words in messages (chat). A prepared folder has its own.",
    )
    text_field: str = setting("text", "Column that holds the text in jsonl, parquet and Hugging Face data.")
    prompt_field: str = setting("prompt", "Column that holds the prompt, with format=prompt.")
    completion_field: str = setting("completion", "Column that holds the completion, with format=prompt.")
    messages_field: str = setting(
        "messages", "Column that holds a list of messages with role and content, with format=chat."
    )
    chat_template: str | None = setting(
        None,
        "How messages become text, with format=chat: plain, or a file with a Jinja template. Default: the "
        "template that the tokenizer brings, otherwise plain.",
    )
    tokenizer: str | None = setting(
        None,
        "SentencePiece model, or the tokenizer.json of a Hugging Face model with the files next to it. "
        "Default: train a SentencePiece model of `vocab_size` pieces on the text.",
    )
    vocab_size: int = setting(
        32000,
        "Number of pieces, if a tokenizer is trained. caat pretrain uses model.vocab_size.",
    )
    validation: float = setting(
        0.01,
        "Fraction of the documents to hold out for validation, chosen by a hash of their text.",
    )
    test: float = setting(
        0.0,
        "Fraction of the documents to hold out for a test, whose loss is computed once, after the last step.",
    )
    dir: str = setting("data", "Folder for prepared token shards.")
    workers: int | None = setting(None, "Number of processes that tokenise. Default: one per core.")

    def __post_init__(self) -> None:
        require_positive(data__vocab_size=self.vocab_size)
        if self.format is not None:
            require_choice("data.format", self.format, FORMATS)
        require(
            self.chat_template is None or self.format == "chat",
            f"data.chat_template={self.chat_template} needs data.format=chat: set it, or leave the template "
            "out",
        )
        require(
            0.0 < self.validation < 1.0,
            f"data.validation={self.validation} is outside (0, 1): it is the fraction of documents held out",
        )
        require(
            0.0 <= self.test < 1.0 - self.validation,
            f"data.test={self.test} is outside [0, {1 - self.validation:g}): with data.validation="
            f"{self.validation} it must leave documents to train on",
        )
        if self.workers is not None:
            require_positive(data__workers=self.workers)
        if self.mixture is not None or self.sources is not None:
            self._check_mixture()

    def _check_mixture(self) -> None:
        weights, sources = self.mixture or {}, self.sources or {}
        # In quotes: the shell would expand the braces.
        example = "'data.mixture={web:0.7,code:0.3}' 'data.sources={web:tokens/web,code:tokens/code}'"
        for group, values in (("data.mixture", weights), ("data.sources", sources)):
            require(isinstance(values, dict), f"{group}={values} has no names: give {example}")
        require(
            self.path is None,
            f"data.path={self.path} is one text and data.mixture names several: give only one of the two",
        )
        require(bool(weights), f"data.sources has no effect without data.mixture: give {example}")
        for name, weight in weights.items():
            require(
                isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", name) is not None,
                f"data.mixture has a source {name}: a name is a letter, then letters, digits, _, - and .",
            )
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            require(number and weight > 0, f"data.mixture={{{name}:{weight}}}: give a weight above 0")
            require(
                name in sources,
                f"data.mixture has {name}, which data.sources does not: give "
                f"data.sources={{{name}:PATH,...}}",
            )
        for name, path in sources.items():
            require(
                isinstance(path, str),
                f"data.sources={{{name}:{path}}} is not a path: give it in quotes, '...'",
            )
            check_path(path, f"data.sources={{{name}:...}}")
            require(
                name in weights,
                f"data.sources has {name}, which data.mixture does not: give "
                f"data.mixture={{{name}:WEIGHT,...}}, or leave it out",
            )
        require(
            len(weights) > 1,
            f"data.mixture has only {next(iter(weights))}: give several sources, or its text as data.path",
        )

    @property
    def given(self) -> str:
        """The text as the user gave it."""
        return "the quick-start text" if self.path is None else f"data.path={self.path}"

    def source(self, name: str) -> DataConfig:
        """Return the settings of one source of the mixture."""
        alone = {key: value for key, value in vars(self).items() if key not in ("mixture", "sources", "path")}
        return SourceConfig(**alone, path=self.sources[name], name=name)

    @property
    def marked(self) -> bool:
        """Whether only a part of each row counts as targets."""
        return self.format in ("prompt", "chat")

    @property
    def columns(self) -> dict[str, str]:
        """The columns of a row by the setting that names them."""
        names = {"prompt": ("prompt_field", "completion_field"), "chat": ("messages_field",)}
        chosen = names.get(self.format or "text", ("text_field",))
        return {f"data.{name}": getattr(self, name) for name in chosen}


@dataclass
class SourceConfig(DataConfig):
    """The settings of one source of a mixture, ``name``."""

    name: str = ""

    @property
    def given(self) -> str:
        return f"data.sources={{{self.name}:{self.path}}}"
