"""Streaming of a Hugging Face dataset: `datasets` streams it from its cache, as it does without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caat.data import corpus, streaming
from caat.data.corpus import data_fingerprint, prepare, prepared_folder
from caat.data.prepared import prepare_text
from caat.data.shards import TokenShards, check_content, read_index
from conf.data import DataConfig
from tests.data.conftest import write_documents

COUNT = 5000


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """The cache of `datasets` after owner/words, owner/chats and owner/nothing were downloaded."""
    import datasets

    root = tmp_path_factory.mktemp("hub")
    names = ("words", "chats", "nothing")
    for name in names:
        (root / name).mkdir()
    write_documents(root / "words" / "rows.jsonl", COUNT)
    rows = [{"prompt": f"{i} plus 1 is", "completion": f" {i + 1}."} for i in range(COUNT)]
    (root / "chats" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_dict({"text": []}).to_parquet(root / "nothing" / "rows.parquet")
    for name in names:
        datasets.load_dataset_builder(str(root / name), cache_dir=str(root / "cache")).download_and_prepare()
        (root / "cache" / name).rename(root / "cache" / f"owner___{name}")
    return root / "cache"


@pytest.fixture
def settings(cache, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def make(name: str = "owner/words", **more) -> DataConfig:
        kept = {"vocab_size": 400, "dir": str(tmp_path / "data"), "workers": 1, "validation": 0.1}
        return DataConfig(path=name, **{**kept, **more})

    return make


def tokens(folder: Path, split: str) -> np.ndarray:
    shards = TokenShards(folder, split)
    return shards.read(0, len(shards))


def test_one_block_gives_the_same_files(settings):
    whole, streamed = prepare(settings()), prepare(settings(streaming=True))
    assert whole != streamed
    files = [file.name for file in sorted(whole.iterdir())]
    assert files == [file.name for file in sorted(streamed.iterdir())] and "train-00004.bin" in files
    for name in set(files) - {"index.json"}:
        assert (whole / name).read_bytes() == (streamed / name).read_bytes(), name
    assert data_fingerprint(whole) == data_fingerprint(streamed)
    assert prepared_folder(settings()).name == prepared_folder(settings(streaming=False)).name


@pytest.mark.parametrize(
    ("workers", "size", "expected"),
    [(1, 400_000, [2048, 2048, COUNT - 4096]), (2, 600_000, [3072, COUNT - 3072])],
)
def test_many_blocks_give_the_same_tokens_and_one_is_stored_at_a_time(
    settings, monkeypatch, capsys, workers, size, expected
):
    whole = prepare(settings())
    blocks = []

    def stored(files, cache, store=streaming.stored):
        assert not list(cache.glob("*"))
        assert "documents.arrow" not in Path("/proc/self/maps").read_text()
        blocks.append(len(documents := store(files, cache)))
        return documents

    monkeypatch.setattr(streaming, "stored", stored)
    monkeypatch.setattr(streaming, "BLOCK_BYTES", size)
    given = settings(streaming=True, tokenizer=str(whole / "tokenizer.model"), workers=workers)
    streamed = prepare(given)
    assert blocks == expected
    assert capsys.readouterr().err.count(f"tokenised {COUNT:,} documents") == 2
    assert not (streamed / "scratch").exists()
    check_content(streamed)
    for split in ("train", "validation"):
        np.testing.assert_array_equal(tokens(whole, split), tokens(streamed, split))
    one, other = read_index(whole), read_index(streamed)
    assert (one.documents, one.bytes) == (other.documents, other.bytes)
    assert (whole / "unigram.npy").read_bytes() == (streamed / "unigram.npy").read_bytes()


def test_the_tokenizer_is_trained_on_the_first_block(settings, monkeypatch):
    trained = []

    def train(lines, *rest, train=corpus.train_tokenizer):
        trained.extend(lines)
        train(iter(trained), *rest)

    monkeypatch.setattr(corpus, "train_tokenizer", train)
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 200_000)
    prepare(settings(streaming=True))
    titles = [int(line.split()[1]) for line in trained if line.startswith("Document ")]
    assert 800 < len(titles) < 1024 and max(titles) < 1024


def test_rows(settings, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 150_000)
    rows = {"name": "owner/chats", "format": "prompt", "vocab_size": 280}
    whole = prepare(settings(**rows))
    streamed = prepare(settings(**rows, streaming=True, tokenizer=str(whole / "tokenizer.model")))
    np.testing.assert_array_equal(tokens(whole, "train"), tokens(streamed, "train"))
    one, other = TokenShards(whole, "train"), TokenShards(streamed, "train")
    np.testing.assert_array_equal(one.marks(0, len(one)), other.marks(0, len(other)))


def test_a_mixture(settings, tmp_path):
    mixture = {"mixture": {"a": 1, "b": 2}, "sources": {"a": "owner/words", "b": "owner/words"}}
    streamed = prepare_text(settings(None, **mixture, streaming=True, dir=str(tmp_path / "streamed")))
    assert streamed.fingerprint() == prepare_text(settings(None, **mixture)).fingerprint()
    local = str(write_documents(tmp_path / "local.jsonl", 3))
    mixture["sources"] = {"a": "owner/words", "b": local}
    with pytest.raises(ValueError, match=r"data.sources={b:.*local.jsonl} is not one: leave"):
        prepare_text(settings(None, **mixture, streaming=True))


def test_what_cannot_be_streamed(settings, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="owner/nothing holds no documents: give a dataset"):
        prepare(settings("owner/nothing", streaming=True))
    with pytest.raises(ValueError, match=r"data.text_field=body is not a column of owner/words, which has"):
        prepare(settings(streaming=True, text_field="body"))
    with pytest.raises(ValueError, match=r"data.text_field=id of owner/words holds int64, not text"):
        prepare(settings(streaming=True, text_field="id"))
    with pytest.raises(ValueError, match=r"is not one: leave data.streaming out"):
        prepare(settings(str(write_documents(tmp_path / "local.jsonl", 3)), streaming=True))
    assert [file for file in tmp_path.glob("data/*") if not file.name.endswith(".lock")] == []


def test_a_stream_that_breaks_off_leaves_nothing(settings, cache, monkeypatch, tmp_path):
    """The file of a block is damaged while it is read, as a lost network would cut it."""
    import shutil

    import datasets

    broken = tmp_path / "cache"
    shutil.copytree(cache, broken)
    (file,) = broken.glob("owner___words/**/words-train.arrow")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", broken)
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 150_000)
    config = settings(streaming=True)
    with pytest.raises(ValueError, match=r"the stream of data.path=owner/words broke off .*start again"):
        prepare(config)
    assert [each.name for each in Path(config.dir).iterdir() if not each.name.endswith(".lock")] == []
