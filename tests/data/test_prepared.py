"""The sources of a mixture: one tokenizer for all, a folder for each, a fingerprint of the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from caat.data.corpus import data_fingerprint, prepare
from caat.data.huggingface_tokenizer import read_template
from caat.data.prepared import Prepared, find_prepared, given_tokenizer, prepare_text
from caat.data.shards import read_index
from caat.data.tokenizer import load_tokenizer
from conf.data import DataConfig
from tests.data.conftest import write_documents
from tests.data.test_chats import BLOCKS
from tests.data.test_huggingface_tokenizer import SPECIAL, write_tokenizer
from tests.data.test_rows import write_rows


@pytest.fixture
def mixture(tmp_path: Path) -> DataConfig:
    """Two sources with words of their own."""
    texts = {
        name: str(write_documents(tmp_path / f"{name}.jsonl", 120, seed)) for name, seed in SEEDS.items()
    }
    kept = {"vocab_size": 400, "validation": 0.1, "dir": str(tmp_path / "data"), "workers": 1}
    return DataConfig(mixture={"web": 0.7, "code": 0.3}, sources=texts, **kept)


SEEDS = {"web": 1, "code": 2}


def test_one_tokenizer_is_trained_on_all_sources(mixture):
    assert find_prepared(mixture) is None
    tokens = prepare_text(mixture)
    assert list(tokens.folders) == ["code", "web"]
    assert find_prepared(mixture) == tokens
    assert len({(folder / "tokenizer.model").read_bytes() for folder in tokens.folders.values()}) == 1
    tokenizer = load_tokenizer(tokens.tokenizer)
    assert tokenizer.vocab_size() == 400
    alone = prepare(DataConfig(path=mixture.sources["web"], vocab_size=400, validation=0.1, dir=mixture.dir))
    assert (alone / "tokenizer.model").read_bytes() != tokens.tokenizer.read_bytes()
    # It compresses the words of both about as well.
    sizes = [read_index(folder) for folder in tokens.folders.values()]
    rates = [index.bytes / (index.tokens("train") + index.tokens("validation")) for index in sizes]
    assert max(rates) < 1.1 * min(rates)


def test_other_weights_use_the_same_tokens(mixture):
    tokens = prepare_text(mixture)
    other = replace(mixture, mixture={"web": 1, "code": 1})
    assert find_prepared(other) == Prepared(tokens.folders, {"web": 1, "code": 1})


def test_the_fingerprint_covers_shares_names_and_texts(mixture):
    tokens = prepare_text(mixture)
    code, web = tokens.folders["code"], tokens.folders["web"]
    assert Prepared.of(web).fingerprint() == data_fingerprint(web)
    same = [{"web": 0.7, "code": 0.3}, {"code": 3, "web": 7}]
    assert {Prepared(tokens.folders, weights).fingerprint() for weights in same} == {tokens.fingerprint()}
    others = [
        Prepared(tokens.folders, {"web": 0.6, "code": 0.4}),
        Prepared({"code": web, "web": code}, tokens.weights),
        Prepared({"code": code, "text": web}, {"code": 0.3, "text": 0.7}),
        Prepared.of(web),
    ]
    assert len({each.fingerprint() for each in (tokens, *others)}) == 5


def test_text_beside_a_prepared_folder_takes_its_tokenizer(mixture):
    folder = prepare(DataConfig(path=mixture.sources["web"], vocab_size=400, validation=0.1, dir=mixture.dir))
    mixed = replace(mixture, sources={**mixture.sources, "web": str(folder)})
    assert given_tokenizer(mixed) == folder / "tokenizer.model"
    tokens = prepare_text(mixed)
    assert tokens.folders["web"] == folder
    assert (tokens.folders["code"] / "tokenizer.model").read_bytes() == tokens.tokenizer.read_bytes()


def test_sources_that_end_documents_differently_are_refused(tmp_path, mixture):
    """Equal tokenizer.json files; the files next to them name the end token."""
    folders = {}
    for name, path in mixture.sources.items():
        tokenizer = write_tokenizer(tmp_path / f"tokenizer-{name}")
        if name == "code":
            begin, _ = SPECIAL
            names = {"bos_token": begin, "eos_token": begin}
            (tokenizer.parent / "tokenizer_config.json").write_text(json.dumps(names))
        how = DataConfig(path=path, tokenizer=str(tokenizer), validation=0.1, dir=mixture.dir)
        folders[name] = str(prepare(how))
    says = (
        r"another tokenizer .*it begins and ends documents with <.begin.> and <.end.>, and .*code.*<.begin.>"
    )
    with pytest.raises(ValueError, match=says):
        find_prepared(replace(mixture, sources=folders))


def test_the_template_of_a_mixture_is_that_of_its_chats(tmp_path, mixture):
    rows = write_rows(tmp_path / "rows.jsonl", 300, "chat")
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    (tokenizer.parent / "chat_template.jinja").write_text(BLOCKS)
    how = {"format": "chat", "tokenizer": str(tokenizer), "validation": 0.1, "dir": mixture.dir}
    chats = prepare(DataConfig(path=str(rows), chat_template="plain", **how))
    tokens = prepare_text(replace(mixture, sources={**mixture.sources, "web": str(chats)}))
    assert tokens.tokenizer.parent == chats and read_template(tokens.tokenizer) is None
    assert read_template(tokens.folders["code"] / "tokenizer.json") is None
    others = prepare(DataConfig(path=str(rows), **how))
    both = replace(mixture, sources={"code": str(others), "web": str(chats)})
    for look in (find_prepared, prepare_text):
        with pytest.raises(ValueError, match="chats of code and web were prepared with different templates"):
            look(both)


def test_mistakes_in_the_text_of_a_mixture_are_named(tmp_path, mixture):
    """Not as a failure of SentencePiece, which trains the tokenizer of all sources on them."""
    (tmp_path / "code.jsonl").write_text('{"body": "x"}\n' * 9)
    with pytest.raises(ValueError, match=r"^data\.text_field=text is not a column of .*code\.jsonl"):
        prepare_text(mixture)


def test_sources_without_a_test_split_are_named(mixture):
    how = DataConfig(path=mixture.sources["web"], vocab_size=400, validation=0.1, test=0.1, dir=mixture.dir)
    mixed = replace(mixture, sources={**mixture.sources, "web": str(prepare(how))})
    assert prepare_text(mixed).untested == ["code"]
    assert prepare_text(mixture).untested == ["code", "web"]
    assert prepare_text(replace(mixture, test=0.1)).untested == []


def test_folders_with_different_tokenizers_are_refused(mixture):
    folders = {
        name: str(prepare(DataConfig(path=path, vocab_size=400, validation=0.1, dir=mixture.dir)))
        for name, path in mixture.sources.items()
    }
    with pytest.raises(ValueError, match=r"prepared with another tokenizer than .*prepare it again"):
        find_prepared(replace(mixture, sources=folders))
