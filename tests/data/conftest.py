"""Small corpora and hand-made shards."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from caat.data.shards import FORMAT, VERSION, file_name, token_dtype


def write_documents(path: Path, count: int, seed: int = 0) -> Path:
    """``count`` documents of made-up words as jsonl."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(800)]
    with path.open("w", encoding="utf-8") as lines:
        for number in range(count):
            text = f"Document {number}\n\n" + " ".join(draw.choices(words, k=draw.randint(5, 60)))
            lines.write(json.dumps({"text": text, "id": number}) + "\n")
    return path


def write_shards(
    folder: Path,
    sizes: list[int],
    vocab_size: int = 50_000,
    split: str = "train",
    eos: int = 2,
    **index_fields,
) -> np.ndarray:
    """A prepared folder with one split of files of ``sizes`` tokens; returns its tokens as one stream."""
    folder.mkdir(parents=True)
    tokens = np.random.default_rng(0).integers(vocab_size, size=sum(sizes))
    entries, start = [], 0
    for number, size in enumerate(sizes):
        name = file_name(split, number)
        tokens[start : start + size].astype(token_dtype(vocab_size)).tofile(folder / name)
        entries.append({"file": name, "tokens": size})
        start += size
    index = {
        "format": FORMAT,
        "version": VERSION,
        "key": "0" * 8,
        "source": "made up",
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "bos": 1,
        "eos": eos,
        "documents": 1,
        "bytes": 1,
        "train": [],
        "validation": [],
        split: entries,
        **index_fields,
    }
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "tokenizer.model").write_bytes(b"-")
    return tokens


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "documents.jsonl", 400)
