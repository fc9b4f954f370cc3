"""Users' mistakes in the settings of data, and in the data: each gives one line with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from caat.data.corpus import prepare
from conf.data import DataConfig
from launch import tokenize
from launch.pretrain import set_up
from launch.run.compose import compose
from launch.run.worker import work
from tests.launch.test_mistakes import check_refused

WEIGHTS = "data.mixture={web:0.7,code:0.3}"
SOURCES = "data.sources={web:own.txt,code:own.txt}"
# Settings, number of processes, and what the message must contain: the value and the remedy.
MISTAKES = {
    "unknown format": (["data.format=sharegpt"], 1, ["data.format=sharegpt", "text, prompt, chat"]),
    "template without a chat": (["data.chat_template=plain"], 1, ["needs data.format=chat", "leave"]),
    "chat of a text": (["data.format=chat"], 1, ["data.format=chat needs rows", "jsonl or parquet"]),
    "an empty path": (["data.path="], 1, ["data.path is empty: give a path, or leave data.path out"]),
    "a part of a file": (
        ["data.path=own.txt", "data.split=test"],
        1,
        ["data.split=test is a part of a Hugging Face dataset, and data.path=own.txt is not one"],
    ),
    "held-out share": (["data.validation=1.5"], 1, ["data.validation=1.5", "fraction"]),
    "no text to train on": (
        ["data.validation=0.4", "data.test=0.6"],
        1,
        ["data.test=0.6 is outside [0, 0.6)", "leave documents to train on"],
    ),
    "a negative test share": (["data.test=-0.1"], 1, ["data.test=-0.1 is outside [0, "]),
    "a folder without a test": (
        ["data.path=prepared", "data.test=0.1", "model.vocab_size=304", "train.sequence=64"],
        1,
        ["data.test=0.1, but prepared was prepared without a test split", "leave data.test out"],
    ),
    "nothing to validate on": (
        ["data.path=rows", "model.vocab_size=304", "train.sequence=32", "train.eval_sequences=2"],
        1,
        ["no target counts in the 2 validation sequences of rows", "raise train.eval_sequences or"],
    ),
    "a mixture of nothing": (
        ["data.mixture={}"],
        1,
        ["data.sources has no effect", "'data.mixture={web"],
    ),
    "weights without names": (["data.mixture=0.7", SOURCES], 1, ["data.mixture=0.7 has no names"]),
    "sources without weights": ([SOURCES], 1, ["data.sources has no effect without data.mixture"]),
    "weights without sources": ([WEIGHTS], 1, ["data.mixture has web, which data.sources does not"]),
    "a text and a mixture": (
        ["data.path=own.txt", WEIGHTS, SOURCES],
        1,
        ["data.path=own.txt", "give only one of the two"],
    ),
    "one source": (
        ["data.mixture={web:1}", "data.sources={web:own.txt}"],
        1,
        ["has only web", "its text as data.path"],
    ),
    "a weight of 0": (["data.mixture={web:1,code:0}", SOURCES], 1, ["{code:0}: give a weight above 0"]),
    "a negative weight": (["data.mixture={web:-1,code:1}", SOURCES], 1, ["{web:-1}: give a weight above 0"]),
    "text for a weight": (["data.mixture={web:x,code:1}", SOURCES], 1, ["{web:x}: give a weight above 0"]),
    "a source without weight": (
        [WEIGHTS, "data.sources={web:own.txt,code:own.txt,books:own.txt}"],
        1,
        ["data.sources has books, which data.mixture does not"],
    ),
    "a source named by a path": (
        ["data.mixture={a/b:1,code:1}", SOURCES],
        1,
        ["data.mixture has a source a/b: a name is a letter, then letters"],
    ),
    "a number for a source": (
        [WEIGHTS, "data.sources={web:2024_01,code:own.txt}"],
        1,
        ["data.sources={web:202401} is not a path: give it in quotes"],
    ),
    "a source that does not exist": (
        [WEIGHTS, "data.sources={web:own.txt,code:missing.txt}"],
        1,
        ["data.sources={code:missing.txt} does not exist", "check the path"],
    ),
    "sources with different tokenizers": (
        [WEIGHTS, "data.sources={web:prepared,code:own.txt}", "data.tokenizer=own.model"],
        1,
        [
            "{web:prepared} was prepared with another tokenizer than own.model",
            "prepare it again from its text",
        ],
    ),
    "a source that is too short": (
        [WEIGHTS, "data.sources={web:prepared,code:prepared}", "train.sequence=128"],
        1,
        ["train.sequence=128 is too long for the", "split of prepared"],
    ),
    "a stream of a local text": (
        ["data.path=own.txt", "data.streaming=true"],
        1,
        [
            "data.streaming=true reads a Hugging Face dataset",
            "own.txt is not one",
            "leave data.streaming out",
        ],
    ),
    "no such text": (["data.path=missing.txt"], 1, ["missing.txt does not exist", "check the path"]),
    "empty text": (["data.path=empty.txt"], 1, ["data.path=empty.txt is empty", "give a path"]),
    "unknown kind of text": (["data.path=paper.pdf"], 1, ["data.path=paper.pdf", "use one of .txt"]),
    "no such tokenizer": (["data.tokenizer=no.model"], 1, ["data.tokenizer=no.model", "leave it out"]),
    "not a tokenizer": (["data.tokenizer=own.txt"], 1, ["own.txt", "give a SentencePiece model"]),
    "larger tokenizer": (
        ["data.tokenizer=own.model", "model.vocab_size=272"],
        1,
        ["own.model has 300 pieces", "model.vocab_size=272", "give model.vocab_size=300"],
    ),
    "larger data.vocab_size": (
        ["data.vocab_size=8192"],
        1,
        ["data.vocab_size=8192", "model.vocab_size=4096"],
    ),
    "another tokenizer than prepared": (
        ["data.path=prepared", "data.tokenizer=own.model"],
        1,
        ["data.tokenizer=own.model", "prepared with another one", "leave data.tokenizer out"],
    ),
    "larger prepared tokenizer": (
        ["data.path=prepared", "model.vocab_size=256"],
        1,
        ["prepared has 300 pieces", "model.vocab_size=256", "give model.vocab_size=300"],
    ),
    "longer than the text": (
        ["data.path=prepared", "train.sequence=128"],
        1,
        ["train.sequence=128", "validation split of prepared, which has 100 tokens", "lower train.sequence"],
    ),
    "no counts for the figures": (
        ["data.path=uncounted", "train.sequence=64"],
        1,
        ["uncounted/unigram.npy cannot be read", "prepare it again"],
    ),
    "counts of another text": (
        ["data.path=others", "train.sequence=64"],
        1,
        ["others/unigram.npy does not match the token count", "prepare it again"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    check_refused(*MISTAKES[name])


def test_tokens_that_were_changed_are_not_trained_on(folder, tmp_path, monkeypatch):
    """All zero: valid tokens, in the right number. They are rejected before any process group starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("\n\n".join(f"Text {i} of {i * i} words." for i in range(200)))
    data = DataConfig(path="book.txt", tokenizer=str(folder / "own.model"), validation=0.1)
    tokens = prepare(data, tmp_path / "tokens")
    config = compose(["data.path=tokens", "model.vocab_size=300", "train.sequence=64", "run.dir=new"])
    (tokens / "train-00000.bin").write_bytes(bytes((tokens / "train-00000.bin").stat().st_size))
    for start in (set_up, work):
        with pytest.raises(
            ValueError, match=r"tokens is damaged: train-00000.bin is damaged: .* in index.json"
        ):
            start(config)
    assert not Path("new").exists()
    with pytest.raises(ValueError, match=r"tokens is damaged"):
        tokenize.main(["data.path=tokens"])
