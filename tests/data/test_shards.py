"""Reading prepared tokens."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from caat.data.prepared import Prepared
from caat.data.shards import MOST_MAPPED, TokenShards, token_dtype
from launch.run.tokens import check_tokens
from tests.data.conftest import write_shards


@pytest.mark.parametrize("vocab_size", [50_000, 65_536, 65_537, 200_000])
def test_reads_across_borders(tmp_path, vocab_size):
    tokens = write_shards(tmp_path / "shards", [5, 1, 7, 2], vocab_size)
    shards = TokenShards(tmp_path / "shards", "train")
    assert len(shards) == 15 and shards.vocab_size == vocab_size
    assert shards.dtype == (np.uint16 if vocab_size <= 65_536 else np.uint32)
    for start in range(16):
        for length in range(16 - start):
            read = shards.read(start, length)
            assert read.dtype == np.int64
            np.testing.assert_array_equal(read, tokens[start : start + length])
    assert len(TokenShards(tmp_path / "shards", "validation")) == 0


def test_more_files_than_a_process_may_open(tmp_path):
    """The limit is one for all sources and splits, and a folder that is prepared again is read anew."""
    for vocab_size in (50_000, 60_000):
        for source in ("web", "code"):
            shutil.rmtree(tmp_path / source, ignore_errors=True)
            tokens = write_shards(tmp_path / source, [2] * 300, vocab_size)
            shards = TokenShards(tmp_path / source, "train")
            for start in (0, 400, 1, 599):
                np.testing.assert_array_equal(shards.read(start, 600 - start), tokens[start:])
    targets = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert 0 < sum(str(tmp_path) in target for target in targets) <= MOST_MAPPED


def test_a_token_that_the_tokenizer_does_not_have_is_named(tmp_path):
    write_shards(tmp_path / "shards", [5, 6], 500)
    damaged = tmp_path / "shards" / "train-00001.bin"
    damaged.write_bytes(np.array([1, 2, 3, 500, 4, 5], "<u2").tobytes())
    shards = TokenShards(tmp_path / "shards", "train")
    assert len(shards.read(0, 8)) == 8 and len(shards.read(9, 2)) == 2
    with pytest.raises(ValueError, match=r"train tokens \[0, 9\) in .* hold 500, .* 0 to 499: remove"):
        shards.read(0, 9)


def test_width_follows_vocabulary():
    assert token_dtype(65_536) == "<u2" and token_dtype(65_537) == "<u4"


def test_opening_maps_nothing(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", [3] * 40)
    opened = []
    memmap = np.memmap

    def spy(path, *args, **kwargs):
        opened.append(path.name)
        return memmap(path, *args, **kwargs)

    monkeypatch.setattr(np, "memmap", spy)
    shards = TokenShards(tmp_path / "shards", "train")
    assert opened == []
    shards.read(4, 1)
    shards.read(3, 3)
    assert opened == ["train-00001.bin"]


def test_missing_and_truncated_files(tmp_path):
    folder = tmp_path / "shards"
    write_shards(folder, [3, 4])
    with (folder / "train-00001.bin").open("r+b") as file:
        file.truncate(6)
    with pytest.raises(ValueError, match=r"train-00001\.bin should hold 8 bytes.*6 bytes.*prepare it again"):
        TokenShards(folder, "train")
    (folder / "train-00001.bin").unlink()
    with pytest.raises(ValueError, match=r"train-00001\.bin.*No such file.*prepare it again"):
        TokenShards(folder, "train")


def test_broken_index(tmp_path):
    folder = tmp_path / "shards"
    with pytest.raises(ValueError, match=r"index\.json cannot be read.*caat tokenize"):
        TokenShards(folder, "train")
    write_shards(folder, [3])
    index = json.loads((folder / "index.json").read_text())
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "index.json holds .*give a folder made by `caat tokenize`"),
        (json.dumps({**index, "format": "other"}), "has format=\"other\", which must be 'caat-tokens'"),
        (json.dumps({**index, "version": 99}), "has version=99, which must be 1"),
        (json.dumps({key: value for key, value in index.items() if key != "dtype"}), "no dtype"),
        (json.dumps({**index, "train": [{"file": 3, "tokens": 1}]}), "has train.0.file=3, which must be"),
        (json.dumps({**index, "train": [{"file": "a", "tokens": "1"}]}), 'has train.0.tokens="1"'),
        (json.dumps({**index, "train": [{"file": "../a", "tokens": 1}]}), "../a is not a file in its folder"),
        (json.dumps({**index, "dtype": "pancake"}), 'has dtype="pancake", which must be'),
        (json.dumps({**index, "dtype": "float16"}), 'has dtype="float16", which must be'),
        (json.dumps({**index, "vocab_size": 70_000}), "dtype=uint16 does not hold vocab_size=70000"),
    ):
        (folder / "index.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            TokenShards(folder, "train")


def test_a_folder_without_checksums_is_read(tmp_path, capsys):
    """Folders of older versions have no checksums."""
    write_shards(tmp_path / "shards", [3])
    check_tokens(Prepared.of(tmp_path / "shards"))
    assert "note: " in (said := capsys.readouterr().err) and "before its files had checksums" in said
    assert len(TokenShards(tmp_path / "shards", "train")) == 3
