"""Settings of the text and its tokenizer: `data.*`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_positive
from conf.field import setting


@dataclass
class DataConfig:
    """The text to train on. It is tokenised once per combination of settings, into ``dir``."""

    path: str | None = setting(
        None,
        "Text to train on: a text, jsonl or parquet file, a folder or glob of them, a folder made by "
        "`caat tokenize`, or the name of a Hugging Face dataset. Default: the quick-start text "
        "(Wikipedia introductions).",
    )
    subset: str | None = setting(None, "Configuration of a Hugging Face dataset.")
    split: str = setting("train", "Split of a Hugging Face dataset.")
    text_field: str = setting("text", "Column that holds the text in jsonl, parquet and Hugging Face data.")
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
    dir: str = setting("data", "Folder for prepared token shards.")
    workers: int | None = setting(None, "Number of processes that tokenise. Default: one per core.")

    def __post_init__(self) -> None:
        require_positive(data__vocab_size=self.vocab_size)
        require(
            0.0 < self.validation < 1.0,
            f"data.validation={self.validation} is outside (0, 1): it is the fraction of documents held out",
        )
        if self.workers is not None:
            require_positive(data__workers=self.workers)
