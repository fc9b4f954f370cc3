"""Hugging Face's tokenizer.json: loading, preparing text with it, and the files that are kept with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from caat.data.corpus import prepare, prepared_folder
from caat.data.shards import TokenShards, read_index
from caat.data.tokenizer import find_tokenizer, load_tokenizer, tokenizer_files
from conf.data import DataConfig

SPECIAL = ["<|begin|>", "<|end|>"]


def write_tokenizer(folder: Path, vocab_size: int = 400) -> Path:
    """A byte-level BPE tokenizer like SmolLM's, saved with truncation and padding enabled."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"document number {i} says {i * i} words" for i in range(200)), trainer)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": SPECIAL[0],
        "eos_token": {"content": SPECIAL[1]},
        "auto_map": {"AutoTokenizer": "x"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder / "tokenizer.json"


def test_text_comes_back(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    text = "  document 7, longer than five pieces\n\nÜ 日本語 \U0001f680"
    ids = tokenizer.encode(text)
    assert len(ids) > 5 and tokenizer.decode([tokenizer.bos_id(), *ids, tokenizer.eos_id()]) == text
    assert (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()) == (0, 1, 400)
    (document,) = tokenizer.encode_documents([text])
    assert document.dtype == np.int32 and document.tolist() == [0, *ids, 1]


def test_what_names_begin_and_end(tmp_path):
    path = write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r'no file next to .* begins a document: add {"bos_token": "..."}'):
        load_tokenizer(path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": [0, 1]}')
    assert (load_tokenizer(path).bos_id(), load_tokenizer(path).eos_id()) == (1, 0)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<|begin|>"}')
    assert load_tokenizer(path).bos_id() == 0
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(ValueError, match=r"names bos_token <s>, which is not in "):
        load_tokenizer(path)
    (tmp_path / "special_tokens_map.json").write_text("{")
    with pytest.raises(ValueError, match=r"special_tokens_map.json is not JSON"):
        load_tokenizer(path)


def test_its_files_are_enough_and_run_no_code(tmp_path):
    path = write_tokenizer(tmp_path / "there")
    (tmp_path / "here").mkdir()
    for name, content in tokenizer_files(path).items():
        (tmp_path / "here" / name).write_bytes(content)
    again = load_tokenizer(find_tokenizer(tmp_path / "here"))
    assert again.encode("document 7") == load_tokenizer(path).encode("document 7")
    assert (again.bos_id(), again.eos_id()) == (0, 1)
    assert "auto_map" not in (tmp_path / "here" / "tokenizer_config.json").read_text()


def test_prepared_text(documents, tmp_path):
    path = write_tokenizer(tmp_path / "there")
    config = DataConfig(path=str(documents), tokenizer=str(path), validation=0.1, dir=str(tmp_path / "data"))
    folder = prepare(config)
    index, tokenizer = read_index(folder), load_tokenizer(find_tokenizer(folder))
    assert (index.vocab_size, index.bos, index.eos) == (400, 0, 1)
    texts = {json.loads(line)["text"] for line in documents.read_text().splitlines()}
    for split in ("train", "validation"):
        shards = TokenShards(folder, split)
        stream = shards.read(0, len(shards))
        found = np.split(stream, np.flatnonzero(stream == 1) + 1)[:-1]
        assert found and {tokenizer.decode(document.tolist()) for document in found} <= texts
    assert prepare(DataConfig(path=str(folder))) == folder
    # With a different begin token, the text is prepared again.
    (path.parent / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": SPECIAL[1], "eos_token": SPECIAL[1]})
    )
    assert prepared_folder(config) != folder


def test_bad_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="no such file"):
        load_tokenizer(path)
    path.write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"is not a tokenizer.json .*give the tokenizer.json"):
        load_tokenizer(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer: put its tokenizer.model or tokenizer.json"):
        find_tokenizer(tmp_path)
