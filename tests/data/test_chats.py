"""Chats rendered by templates: the words that count are the assistant's."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from caat.data.chat import Chats
from caat.data.corpus import prepare
from caat.data.marks import BEGINS, COUNTS
from caat.data.rows import encode_row, renderer
from caat.data.tokenizer import load_tokenizer, tokenizer_files, train_tokenizer
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
    # The words of the first message may occur in what the template writes around them.
    text, runs = counted(config, {"messages": [{"role": "assistant", "content": "a"}]})
    assert text.startswith("<assistant>a") and [run.strip() for run in runs] == ["a"]
