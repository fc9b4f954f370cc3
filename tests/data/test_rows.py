"""Rows of which a part counts: what counts decodes to the completions, and prepared folders keep it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from caat.data import shards as token_shards
from caat.data.corpus import data_fingerprint, prepare, prepared_folder
from caat.data.huggingface_tokenizer import read_template
from caat.data.marks import BEGINS, COUNTS
from caat.data.row_files import read_rows
from caat.data.shards import TokenShards, check_content, cut_rows, read_index, sequence_count
from caat.data.tokenizer import find_tokenizer, load_tokenizer
from conf.data import DataConfig
from tests.data.test_chats import BLOCKS, ROUNDS, TALK, VOCABULARY, counted, make_tokenizer
from tests.data.test_corpus import settings


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
def test_the_completion_counts(tmp_path, kind):
    config = DataConfig(format="prompt", tokenizer=str(make_tokenizer(tmp_path, kind)))
    for completion in (" \U0001f680 words", "\nlines: é", " é"):
        row = {"prompt": "What is document number 7?", "completion": completion}
        text, runs = counted(config, row)
        # SentencePiece decodes a space at the start of a text to nothing.
        assert text == "What is document number 7?" + completion
        assert [run.strip() for run in runs] == [completion.strip()]


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece", "trained"])
def test_prepared_chats_keep_the_given_template(tmp_path, kind):
    """Also in place of one next to the tokenizer; a prepared folder is not used with another one."""
    rows, given = write_rows(tmp_path / "rows.jsonl", 300, "chat"), tmp_path / "mine.jinja"
    given.write_text(BLOCKS)
    how = settings(rows, format="chat", vocab_size=VOCABULARY)
    if kind != "trained":
        how = replace(how, tokenizer=str(make_tokenizer(tmp_path / "tokenizer", kind)))
        (tmp_path / "tokenizer" / "chat_template.jinja").write_text(ROUNDS)
    for template, kept in ((str(given), BLOCKS), ("plain", None)):
        folder = prepare(replace(how, chat_template=template))
        assert read_template(find_tokenizer(folder)) == kept
        assert check_content(folder)
        again = DataConfig(path=str(folder), format="chat", chat_template=template)
        assert prepared_folder(again) == folder
        other = "plain" if kept else str(given)
        with pytest.raises(
            ValueError, match=r"was prepared with another template: leave data\.chat_template"
        ):
            prepared_folder(replace(again, chat_template=other))


def write_rows(path: Path, count: int, form: str) -> Path:
    rows = []
    for number in range(count):
        prompt, completion = f"What is document number {number}?", f" It says {number * number} words."
        if form == "chat":
            turns = (("user", prompt), ("assistant", completion.strip()))
            rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
        else:
            rows.append({"prompt": prompt, "completion": completion, "other": [number]})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("form", ["prompt", "chat"])
def test_prepared_rows_keep_what_counts(tmp_path, form):
    """The same folder from every kind of file, with any number of workers."""
    found = []
    for name, workers in (("rows.jsonl", 1), ("rows.json", 2), ("rows.parquet", 1)):
        path = write_rows(tmp_path / name, 2200, form)
        folder = prepare(settings(path, format=form, workers=workers, vocab_size=VOCABULARY))
        assert check_content(folder) and prepare(DataConfig(path=str(folder))) == folder
        found.append({each.name: each.read_bytes() for each in folder.glob("*-*")})
    assert found[0] == found[1] == found[2]
    index, tokenizer = read_index(folder), load_tokenizer(find_tokenizer(folder))
    assert (index.rows, index.documents) == (form, 2200)
    said = []
    for split in ("train", "validation"):
        shards = TokenShards(folder, split)
        tokens, marks = shards.read(0, len(shards)), shards.marks(0, len(shards))
        assert index.counted[split] == (marks & COUNTS).sum()
        starts = np.flatnonzero(marks & BEGINS)
        assert (tokens[starts] == index.bos).all()
        for first, last in pairwise([*starts, len(tokens)]):
            kept = tokens[first:last][marks[first:last] & COUNTS > 0]
            said.append(tokenizer.decode(kept.tolist()).strip())
    assert sorted(said) == sorted(f"It says {number * number} words." for number in range(2200))


def test_what_a_folder_of_rows_depends_on(tmp_path):
    path, folders = write_rows(tmp_path / "rows.jsonl", 30, "chat"), set()
    template = tmp_path / "mine.jinja"
    for text in (BLOCKS, ROUNDS):
        template.write_text(text)
        folders.add(prepared_folder(settings(path, format="chat", chat_template=str(template))))
    folders |= {prepared_folder(settings(path, **more)) for more in ({}, {"format": "chat"})}
    assert len(folders) == 4
    assert prepared_folder(settings(path)) == prepared_folder(settings(path, format="text"))


def test_the_fingerprint_of_text_is_as_before_rows(tmp_path, documents):
    """It is in checkpoints that exist."""
    index = json.loads((prepare(settings(documents)) / "index.json").read_text())
    assert not {"rows", "template", "counted"} & set(index)
    path = write_rows(tmp_path / "rows.jsonl", 300, "prompt")
    rows = prepare(settings(path, format="prompt", vocab_size=VOCABULARY))
    before = data_fingerprint(rows)
    changed = json.loads((rows / "index.json").read_text())
    changed["counted"]["train"] += 1
    (rows / "index.json").write_text(json.dumps(changed))
    assert data_fingerprint(rows) != before


def test_the_fingerprint_covers_the_order_of_documents(tmp_path, documents):
    lines = Path(documents).read_text().splitlines()
    (tmp_path / "turned.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    first = prepare(settings(documents))
    turned = prepare(settings(tmp_path / "turned.jsonl", tokenizer=str(first / "tokenizer.model")))
    assert data_fingerprint(first) != data_fingerprint(turned)
    # Checkpoints of earlier versions have this one.
    old = [data_fingerprint(each, checksums=False) for each in (first, turned)]
    assert old[0] == old[1] != data_fingerprint(first)


@pytest.mark.parametrize("sequence", [7, 64, 1000])
def test_rows_that_are_cut_are_counted_in_blocks(tmp_path, monkeypatch, sequence):
    path = write_rows(tmp_path / "rows.jsonl", 300, "chat")
    shards = TokenShards(prepare(settings(path, format="chat", vocab_size=VOCABULARY)), "train")
    begins = shards.marks(0, len(shards)) & BEGINS > 0
    starts = slice(0, sequence * sequence_count(shards, sequence), sequence)
    wanted = int(begins.sum()), np.unique(begins.cumsum()[starts][~begins[starts]]).size
    for block in (1, 50, 10**9):
        monkeypatch.setattr(token_shards, "BLOCK", block)
        assert cut_rows(shards, sequence) == wanted


# Rows that cannot be used, their format, and what the message says after the file and the line.
ROWS = {
    "a missing column": ({"question": "a"}, "prompt", "has no column prompt .*it has question"),
    "no text": ({"prompt": 1, "completion": "b"}, "prompt", "the column prompt holds a int"),
    "null": ({"prompt": "a", "completion": None}, "prompt", "the column completion holds a NoneType"),
    "an empty completion": ({"prompt": "a", "completion": " "}, "prompt", ".*is empty.*remove the row"),
    "no messages": ({"text": "a"}, "chat", "has no column messages .*it has text"),
    "no list": ({"messages": "hello"}, "chat", "the messages are a str, but must be a list"),
    "other names": ({"messages": [{"from": "gpt", "value": "b"}]}, "chat", "message 1 is not .*both text"),
    "an unknown role": ({"messages": [{"role": "bot", "content": "b"}]}, "chat", ".* role bot: use system"),
    "no assistant": ({"messages": TALK[:2]}, "chat", "no message is the assistant's.*remove the row"),
    "an empty answer": ({"messages": [{**TALK[2], "content": ""}]}, "chat", "message 1, .* is empty"),
    "no object": (1, "chat", "holds a int, not an object"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_cannot_be_used_are_named(tmp_path, case):
    row, form, message = ROWS[case]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(ValueError, match=f"rows.jsonl: line 2:? {message}") as caught:
        prepare(settings(path, format=form))
    assert "\n" not in str(caught.value)


def test_other_columns_of_parquet_may_hold_anything(tmp_path):
    """A row that is not UTF-8 is named; one in a column that is not read does not matter."""
    good = pa.array(["What?", "And now?", "So?"] * 200)
    buffers = pa.array([b"yes", b"\xff no", b"all"] * 200, pa.binary()).buffers()
    bad = pa.Array.from_buffers(pa.string(), 600, buffers)
    columns = {"prompt": good, "completion": bad, "more": good}
    pa.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet: row 2 holds the byte FF, which is not valid UTF-8"):
        prepare(settings(tmp_path / "rows.parquet", format="prompt", vocab_size=VOCABULARY))
    columns = {"prompt": good, "completion": good, "more": bad}
    pa.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    found = [row for _, row in read_rows("parquet", tmp_path / "rows.parquet", ["prompt", "completion"])]
    assert found[1] == {"prompt": "And now?", "completion": "And now?"}


def test_blank_lines_before_a_json_array(tmp_path):
    (tmp_path / "rows.json").write_text("\n \n" + json.dumps([{"a": 1}, {"a": 2}]))
    found = list(read_rows("json", tmp_path / "rows.json", ["a"]))
    assert [row["a"] for _, row in found] == [1, 2] and found[1][0].endswith(": entry 2")


def test_sources_that_hold_no_rows(tmp_path):
    (tmp_path / "book.txt").write_text("words")
    for path in (str(tmp_path / "book.txt"), None):
        with pytest.raises(ValueError, match=r"data\.format=chat needs rows with columns, .*give a jsonl"):
            prepared_folder(DataConfig(path=path, format="chat"))
    rows = write_rows(tmp_path / "rows.jsonl", 3, "chat")
    with pytest.raises(ValueError, match=r"chat_template=none\.jinja cannot be read .No such file"):
        prepared_folder(settings(rows, format="chat", chat_template="none.jinja"))
    rows = write_rows(tmp_path / "more.jsonl", 300, "prompt")
    folder = prepare(settings(rows, format="prompt", vocab_size=VOCABULARY))
    with pytest.raises(ValueError, match=r"data\.format=chat, but .* was prepared with prompt: leave"):
        prepared_folder(DataConfig(path=str(folder), format="chat"))
