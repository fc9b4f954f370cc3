"""The text, and what becomes of it before training."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_positive


@dataclass
class DataConfig:
    """Text in, token shards out. Prepared once per distinct setting, under ``dir``."""

    # A text, jsonl or parquet file, a folder or glob of them, a folder made by `caat tokenize`,
    # or the name of a Hugging Face dataset. Default: the quick-start text (Wikipedia introductions).
    path: str | None = None
    # Of a Hugging Face dataset: its configuration and split.
    subset: str | None = None
    # Its split.
    split: str = "train"
    # The column that holds the text in jsonl, parquet and Hugging Face data.
    text_field: str = "text"
    # A SentencePiece model or the tokenizer.json of a Hugging Face model, with the files beside it;
    # default: a SentencePiece model of `vocab_size` pieces is trained on the text.
    tokenizer: str | None = None
    # Pieces of the tokenizer that is trained; caat pretrain takes model.vocab_size.
    vocab_size: int = 32000
    # Fraction of the documents, chosen by a hash of their text, that is held out for validation.
    validation: float = 0.01
    # Where prepared token shards are kept.
    dir: str = "data"
    # Processes that tokenise; default: one per core.
    workers: int | None = None

    def __post_init__(self) -> None:
        require_positive(data__vocab_size=self.vocab_size)
        require(
            0.0 < self.validation < 1.0,
            f"data.validation={self.validation} is outside (0, 1): it is the fraction of documents held out",
        )
        if self.workers is not None:
            require_positive(data__workers=self.workers)
