"""Training and loading tokenizers."""

from __future__ import annotations

import io

import pytest

from caat.data.tokenizer import load_tokenizer, train_tokenizer

LINES = ["the quick brown fox jumps over 1234 lazy dogs", "a second line, with  two spaces"] * 50


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(iter(LINES), 300, path)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.model"]
    return load_tokenizer(path)


def test_conventions(tokenizer):
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, -1)
    assert tokenizer.vocab_size() == 300
    assert not any("12" in tokenizer.id_to_piece(i) for i in range(300) if not tokenizer.is_byte(i))


@pytest.mark.parametrize(
    "text",
    [
        "  leading, double  and trailing  ",
        "line\n\nline\r\n\ttab",
        "日本語 العربية עברית ελληνικά",
        "\U0001f9d1\u200d\U0001f680 e\u0301 \ufb01 \u00bd \ufeff\u0000\u0085\u2028",
        "".join(chr(code) for code in range(0x20, 0x2FF)),
        "".join(map(chr, range(0x10000, 0x10400))),
    ],
)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id() not in tokenizer.encode(text)


def test_vocabulary_that_does_not_fit(tmp_path):
    out = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match=r"vocab_size=9000 is too large.*lower it .* to at most \d+"):
        train_tokenizer(iter(LINES), 9000, out)
    with pytest.raises(ValueError, match=r"vocab_size=259 must be above 259"):
        train_tokenizer(iter(LINES), 259, out)
    with pytest.raises(ValueError, match=r"vocab_size=300 is too small.*raise it"):
        train_tokenizer(iter([chr(0x4E00 + i) * 9 for i in range(500)]), 300, out)
    with pytest.raises(ValueError, match=r"vocab_size=300 could be trained on this text"):
        train_tokenizer(iter([]), 300, out)
    assert not out.exists()


def test_bad_models(tmp_path):
    import sentencepiece

    path = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(path)
    for content in (b"", b"junk" * 9):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a SentencePiece model"):
            load_tokenizer(path)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=39,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    with pytest.raises(ValueError, match="no piece that begins or ends a document"):
        load_tokenizer(path)
