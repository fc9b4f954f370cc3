"""A folder of a user who makes mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from caat.data.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Texts, a tokenizer of 300 pieces, and tokens prepared by hand."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "own.txt").write_text("Some text of one's own.\n\n" * 20)
    (folder / "empty.txt").touch()
    (folder / "paper.pdf").write_text("%PDF")
    lines = (f"sentence number {i} about {i * i}" for i in range(200))
    train_tokenizer(lines, 300, folder / "own.model")
    prepared = folder / "prepared"
    prepared.mkdir()
    (prepared / "tokenizer.model").touch()
    index = {"format": "caat-tokens", "version": 1, "key": "0", "source": "", "dtype": "uint16"}
    index |= {"vocab_size": 300, "bos": 1, "eos": 2, "documents": 2, "bytes": 9}
    index |= {"train": [{"file": "a", "tokens": 900}, {"file": "b", "tokens": 9}]}
    index |= {"validation": [{"file": "c", "tokens": 100}]}
    (prepared / "index.json").write_text(json.dumps(index))
    shutil.copytree(prepared, folder / "uncounted")
    np.save(prepared / "unigram.npy", np.array([909] + 299 * [0]))
    shutil.copytree(prepared, folder / "others")
    np.save(folder / "others" / "unigram.npy", np.arange(300))
    # Rows of which nothing that is held out counts.
    rows = shutil.copytree(prepared, folder / "rows")
    (rows / "index.json").write_text(json.dumps(index | {"rows": "prompt"}))
    for name, tokens, mark in (("a", 900, 1), ("b", 9, 1), ("c", 100, 0)):
        (rows / name).write_bytes(bytes(2 * tokens))
        (rows / f"{name}.marks").write_bytes(bytes([mark]) * tokens)
    return folder
