"""Where a continuation ends, and that what is shown early is never taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from caat.data.sentencepiece_export import as_huggingface
from caat.data.tokenizer import load_tokenizer
from eval.generation.continuation import Continuation
from tests.data.test_huggingface_tokenizer import write_tokenizer
from tests.trained import write_checkpoint


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    checkpoint: Path = write_checkpoint(tmp_path_factory.mktemp("run"), 1, 1.0)
    return load_tokenizer(checkpoint / "tokenizer.model")


def run(tokenizer, prompt: str, text: str, stop=()):
    """``prompt`` continued by the tokens of ``text``; also the pieces as they were shown."""
    before = [tokenizer.bos_id(), *tokenizer.encode(prompt)]
    after = [tokenizer.bos_id(), *tokenizer.encode(prompt + text)][len(before) :]
    continuation = Continuation(tokenizer, before, stop)
    pieces = [continuation.add(token) for token in after]
    pieces.append(continuation.finish())
    return continuation, pieces


@pytest.mark.parametrize("prompt", ["", "The", "The brown fox", "naïve 日本"])
@pytest.mark.parametrize("text", [" fox jumped", "\n\nIt is 12.", " 日本語 🦊 é", "  two  spaces ", "x"])
def test_pieces_add_up_to_the_text(tokenizer, prompt, text):
    continuation, pieces = run(tokenizer, prompt, text)
    assert prompt + "".join(pieces) == prompt + continuation.text
    # Alone in its document, a text begins without the space that SentencePiece puts before it.
    assert continuation.text == text or (prompt == "" and text.strip() == continuation.text.strip())
    assert continuation.ending == "length"
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_certain(tokenizer):
    _, pieces = run(tokenizer, "The", " brown fox jumped")
    assert pieces[-1] == "" and sum(map(bool, pieces)) > 2


def test_a_context_does_not_begin_within_a_character(tmp_path):
    """Four of the prompt's tokens are a byte of one character and the three of another."""
    files = as_huggingface(write_checkpoint(tmp_path / "run", 1, 1.0) / "tokenizer.model")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    continuation, pieces = run(tokenizer, "漢字仮名", "文字ab名")
    assert continuation.text == "文字ab名" == "".join(pieces)


def test_a_model_may_end_a_text_with_several_tokens(tokenizer):
    other = tokenizer.encode("fox")[-1]
    for end in (other, tokenizer.eos_id()):
        continuation = Continuation(tokenizer, tokenizer.encode("The"), [], ends=[other])
        for token in [*tokenizer.encode("brown"), end, *tokenizer.encode("dogs")]:
            continuation.add(token)
        assert (continuation.text, continuation.ending) == (" brown", "end of text")


def test_the_token_that_ends_a_turn_stops(tmp_path):
    """Decoding skips it, so that its text would never be found."""
    path = write_tokenizer(tmp_path)
    fast = tokenizers.Tokenizer.from_file(str(path))
    fast.add_special_tokens(["<|turn|>"])
    fast.save(str(path))
    tokenizer = load_tokenizer(path)
    continuation = Continuation(tokenizer, tokenizer.encode("says"), ["<|turn|>", "never"])
    for token in tokenizer.encode(" words<|turn|> and more"):
        continuation.add(token)
    assert (continuation.text, continuation.ending) == (" words", "stop")


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        (" brown fox jumped", ["fox"], " brown "),
        (" brown fox jumped", ["n fo"], " brow"),  # spans tokens
        (" brown fox jumped", ["jumped", "x j"], " brown fo"),  # the first in the text
        (" brown\n\nfox", ["\n\n"], " brown"),
        (" 日本語", ["本"], " 日"),
        (" fé", ["fé"], " "),  # the last character takes several tokens
        (" brown", ["brown!"], " brown"),  # only begun
    ],
)
def test_stop_strings(tokenizer, text, stop, kept):
    continuation, pieces = run(tokenizer, "The", text, stop)
    assert continuation.text == "".join(pieces) == kept
    assert continuation.ending == ("stop" if any(each in text for each in stop) else "length")


def test_nothing_is_added_after_the_end(tokenizer):
    continuation, _ = run(tokenizer, "The", " brown", ["row"])
    tokens = list(continuation.tokens)
    assert continuation.add(5) == "" and continuation.finish() == ""
    assert continuation.tokens == tokens


def test_the_end_of_text_token_ends_it_and_is_not_in_it(tokenizer):
    continuation = Continuation(tokenizer, [tokenizer.bos_id()], ["never"])
    shown = continuation.add(tokenizer.encode("nev")[0]) + continuation.add(tokenizer.eos_id())
    assert continuation.ending == "end of text" and continuation.text == shown
    assert tokenizer.eos_id() not in continuation.tokens


def test_half_a_character_is_shown_at_the_end_only(tokenizer):
    begin = tokenizer.encode("日")[:-1]  # its last byte is missing
    continuation = Continuation(tokenizer, tokenizer.encode("The"), [])
    assert "\ufffd" not in "".join(continuation.add(token) for token in begin)
    assert "\ufffd" in continuation.finish()


def test_half_a_character_does_not_spoil_the_whole_ones_before_it(tmp_path):
    """The decoder of tokenizer.json replaces the bytes of a run all together if the last are no character."""
    files = as_huggingface(write_checkpoint(tmp_path / "run", 1, 1.0) / "tokenizer.model")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    prompt = tokenizer.encode("The fox")
    continuation = Continuation(tokenizer, prompt, [])
    shown = "".join(map(continuation.add, tokenizer.encode("The fox 日本語")[len(prompt) : -1]))
    assert shown == " 日本" and shown + continuation.finish() == continuation.text == " 日本\ufffd"
