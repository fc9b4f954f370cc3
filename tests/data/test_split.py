"""The splits: each document by a hash of its text, and none of them empty."""

from __future__ import annotations

import json
import random
from zlib import crc32

import numpy as np
import pytest

from caat.data.corpus import data_fingerprint, prepare
from caat.data.shards import TokenShards, read_index
from caat.data.split import bounds_of
from caat.data.tokenizer import load_tokenizer
from conf.data import DataConfig


def splits(texts, validation, test=0.0):
    bounds = bounds_of(texts, validation, test)
    return {text: bounds.split(text.encode()) for text in texts}


def test_a_test_split_leaves_validation_as_it_is():
    texts = [f"document {number}" for number in range(5000)]
    without, found = splits(texts, 0.1), splits(texts, 0.1, 0.2)
    for text in texts:
        share = crc32(text.encode()) / 2**32
        assert found[text] == ("validation" if share < 0.1 else "test" if share < 0.3 else "train")
        assert (without[text] == "validation") == (found[text] == "validation")


@pytest.mark.parametrize("test", [0.0, 0.25, 0.001])
def test_a_tiny_text_has_every_split(test):
    draw = random.Random(1)
    names = {"train", "validation", *(["test"] if test else [])}
    for _ in range(300):
        texts = [str(draw.random()) for _ in range(draw.randint(len(names), 6))]
        validation = draw.choice([0.001, 0.3, 0.7])
        found = splits(texts, validation, test)
        assert set(found.values()) == names
        # The order of the hashes is kept.
        by_hash = sorted(texts, key=lambda text: crc32(text.encode()))
        order = ["validation", "test", "train"]
        assert [found[text] for text in by_hash] == sorted(found.values(), key=order.index)


def test_too_few_documents():
    with pytest.raises(ValueError, match=r"only two documents, but training, validation and test need one"):
        bounds_of(["a", "b", "a"], 0.1, 0.1)
    with pytest.raises(ValueError, match=r"only one document, but training and validation need one"):
        bounds_of(["a", "a"], 0.1)


def test_the_test_split_is_prepared_like_validation(documents):
    kept = {"vocab_size": 400, "dir": str(documents.parent / "data"), "workers": 1, "validation": 0.1}
    without = prepare(DataConfig(path=str(documents), **kept))
    folder = prepare(DataConfig(path=str(documents), test=0.2, **kept))
    assert not read_index(without).test and read_index(folder).splits == ("train", "validation", "test")
    assert "test" not in json.loads((without / "index.json").read_text())
    assert data_fingerprint(folder) != data_fingerprint(without)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    for split, low, high in (("validation", 0.0, 0.1), ("test", 0.1, 0.3), ("train", 0.3, 1.0)):
        shards = TokenShards(folder, split)
        stream = shards.read(0, len(shards))
        found = np.split(stream, np.flatnonzero(stream == tokenizer.eos_id()) + 1)[:-1]
        assert len(found) > 20
        for document in found:
            text = tokenizer.decode(document[1:-1].tolist())
            assert low <= crc32(text.encode()) / 2**32 < high
