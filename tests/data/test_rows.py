"""Rows of which a part counts: what counts decodes to the completions, or to the assistant's words."""

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
from caat.data.chat import Chats
from caat.data.corpus import data_fingerprint, prepare, prepared_folder
from caat.data.huggingface_tokenizer import read_template
from caat.data.marks import BEGINS, COUNTS
from caat.data.row_files import read_rows
from caat.data.rows import encode_row, renderer
from caat.data.shards import TokenShards, check_content, cut_rows, read_index, sequence_count
from caat.data.tokenizer import find_tokenizer, load_tokenizer, tokenizer_files, train_tokenizer
from conf.data import DataConfig
from tests.data.test_corpus import settings
from tests.data.test_huggingface_tokenizer import SPECIAL, write_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is é?"},
    {"role": "assistant", "content": "é is \U0001f680"},
    {"role": "user", "content": "And now?\n"},
    {"role": "assistant", "content": "Nothing: 2 words"},
]
END = SPECIAL[1]
# As in Qwen2: every turn is a block that ends with the end token.
BLOCKS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As in Llama 2: the begin token before each question.
ROUNDS = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}"
    "{% elif m.role == 'user' %}{{ bos_token }}[INST] {{ m.content.strip() }} [/INST]{% endif %}{% endfor %}"
)
# As in Qwen3, text that changes when more follows; the assistant's words are enclosed.
CHANGING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% if loop.last %}(thinks){% endif %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
# As many pieces as the few words below give.
VOCABULARY = 300
WORDS = ["é is \U0001f680", "Nothing: 2 words"]


def make_tokenizer(folder: Path, kind: str) -> Path:
    if kind == "huggingface":
        return write_tokenizer(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"document number {i} says {i * i} words: é" for i in range(200))
    train_tokenizer(lines, 300, folder / "a.model")
    return folder / "a.model"


def counted(config: DataConfig, row: dict) -> tuple[str, list[str]]:
    """The text of the document of ``row``, and that of each run of tokens that count."""
    tokenizer = load_tokenizer(Path(config.tokenizer))
    tokens, marks = encode_row(renderer(config)(row), tokenizer)
    assert tokens[0] == tokenizer.bos_id() and tokens[-1] == tokenizer.eos_id()
    assert marks[0] == BEGINS and not (marks[1:] & BEGINS).any()
    edges = np.flatnonzero(np.diff(marks & COUNTS, prepend=0, append=0))
    runs = [tokens[first:last].tolist() for first, last in list(pairwise(edges))[::2]]
    # The end of what counts is learnt too.
    assert all(run[-1] == tokenizer.eos_id() for run in runs)
    return tokenizer.decode(tokens.tolist()), [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
def test_the_completion_counts(tmp_path, kind):
    config = DataConfig(format="prompt", tokenizer=str(make_tokenizer(tmp_path, kind)))
    for completion in (" \U0001f680 words", "\nlines: é", " é"):
        row = {"prompt": "What is document number 7?", "completion": completion}
        text, runs = counted(config, row)
        # SentencePiece decodes a space at the start of a text to nothing.
        assert text == "What is document number 7?" + completion
        assert [run.strip() for run in runs] == [completion.strip()]


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
def test_the_assistants_words_count(tmp_path, kind):
    path = make_tokenizer(tmp_path, kind)
    text, runs = counted(DataConfig(format="chat", tokenizer=str(path)), {"messages": TALK})
    assert text == (
        "System: Be brief.\nUser: What is é?\nAssistant: é is \U0001f680\nUser: And now?\n\n"
        "Assistant: Nothing: 2 words"
    )
    assert [run.strip() for run in runs] == WORDS


def test_characters_of_several_bytes_after_a_turn(tmp_path):
    tokenizer = load_tokenizer(make_tokenizer(tmp_path, "sentencepiece"))
    tokens, places = tokenizer.encode_places("a</s>\U0001f680 b<s>\u00e9")
    # A document begins with a space, as SentencePiece has it.
    assert tokenizer.decode(tokens) == "a\U0001f680 b \u00e9"
    assert [tokens.count(number) for number in (tokenizer.bos_id(), tokenizer.eos_id())] == [1, 1]
    assert places == sorted(places) and places[-1] == 11
    rocket = 5
    assert places.count(rocket) == 4, "each of its bytes belongs to it"


@pytest.mark.parametrize("template", [BLOCKS, ROUNDS, CHANGING], ids=["blocks", "rounds", "changing"])
@pytest.mark.parametrize("place", ["beside", "settings", "named", "given"])
def test_chat_templates(tmp_path, template, place):
    """In each place where one may be; the words that count are found in every kind."""
    path, more = write_tokenizer(tmp_path), {}
    names = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if place in ("beside", "given"):
        file = tmp_path / ("chat_template.jinja" if place == "beside" else "mine.jinja")
        file.write_text(template)
        more = {"chat_template": str(file)} if place == "given" else {}
    else:
        several = [{"name": "tools", "template": "x"}, {"name": "default", "template": template}]
        names["chat_template"] = template if place == "settings" else several
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    config = DataConfig(format="chat", tokenizer=str(path), **more)
    text, runs = counted(config, {"messages": TALK})
    assert [run.strip() for run in runs] == WORDS
    assert "And now?" in text and "User:" not in text
    if place != "given":
        kept = json.loads(tokenizer_files(path)["tokenizer_config.json"])
        assert kept["chat_template"] == template, "a checkpoint keeps the template"


def test_a_template_stays_with_a_sentencepiece_model(tmp_path):
    path = make_tokenizer(tmp_path, "sentencepiece")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": BLOCKS}))
    for name, content in tokenizer_files(path).items():
        (tmp_path / "kept").mkdir(exist_ok=True)
        (tmp_path / "kept" / name).write_bytes(content)
    text, runs = counted(
        DataConfig(format="chat", tokenizer=str(tmp_path / "kept" / "tokenizer.model")), {"messages": TALK}
    )
    assert text.startswith("<system>Be brief.") and [run.strip() for run in runs] == WORDS


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


def test_a_template_needs_transformers(monkeypatch):
    monkeypatch.setattr("caat.data.chat.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs transformers: pip install .*data\.chat_template=plain"):
        Chats(BLOCKS, {})
    assert Chats(None, {"eos_token": "</s>"}).render(TALK).text.startswith("System: Be brief.")


def test_a_template_is_text_only():
    """It runs in a sandbox, which lets no attribute lead to the interpreter."""
    attacks = ("''.__class__.__mro__", "messages.append(1)", "cycler.__init__.__globals__")
    for attack in (f"{{{{ {text} }}}}" for text in attacks):
        with pytest.raises(ValueError, match="the chat template fails"):
            Chats(attack, {"bos_token": "<s>", "eos_token": "</s>"}).render(TALK)


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


TEMPLATES = {
    "fails": ("{{ raise_exception('roles must alternate') }}", "fails .TemplateError: roles must alternate"),
    "is none": ("{% for %}", "the chat template fails .TemplateSyntaxError"),
    "says nothing": ("{% generation %}{% endgeneration %}", "writes no word of the assistant's"),
    "changes": ("{{ messages | length }}{{ messages[-1].content }}", "changes earlier text when message 3"),
    "begins otherwise": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}",
        "does not begin message 2 like its generation prompt",
    ),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_templates_that_cannot_be_used(tmp_path, case):
    text, message = TEMPLATES[case]
    template = tmp_path / "mine.jinja"
    template.write_text(text)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TALK[-4:] if "3" in message else TALK[-2:]}))
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match=f"rows.jsonl: line 1: .*{message}"):
        prepare(settings(path, format="chat", chat_template=str(template)))


def test_the_assistant_may_begin(tmp_path):
    """Also with a template that reads the first message, as Qwen2.5's does."""
    reading = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + BLOCKS
    (tmp_path / "chat_template.jinja").write_text(reading)
    config = DataConfig(format="chat", tokenizer=str(write_tokenizer(tmp_path)))
    talk = [{"role": "assistant", "content": "Hello."}, *TALK[1:]]
    text, runs = counted(config, {"messages": talk})
    assert text.startswith("<assistant>Hello.") and [run.strip() for run in runs] == ["Hello.", *WORDS]


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
