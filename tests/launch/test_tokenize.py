"""`caat tokenize` says what it prepared, and checks what was there before."""

from __future__ import annotations

import pytest

from launch import tokenize
from tests.data.conftest import write_documents
from tests.data.test_huggingface_tokenizer import write_tokenizer


def test_sources_that_are_there_are_checked(tmp_path, capsys):
    web, code = (
        write_documents(tmp_path / f"{name}.jsonl", 120, seed) for name, seed in (("web", 1), ("code", 2))
    )
    how = ["data.vocab_size=400", "data.validation=0.1", "data.workers=1"]
    tokenize.main([f"data.path={web}", f"out={tmp_path / 'tokens'}", *how])
    capsys.readouterr()
    for given, says in (
        ("data.test=0.1", "was prepared without a test split"),
        (f"data.tokenizer={write_tokenizer(tmp_path / 'other')}", "was prepared with another one"),
    ):
        with pytest.raises(ValueError, match=says):
            tokenize.main([f"data.path={tmp_path / 'tokens'}", given])
    mixture = ["data.mixture={web:0.7,code:0.3}", f"data.sources={{web:{tmp_path / 'tokens'},code:{code}}}"]
    # One source is prepared before, the other is not; then both are.
    for says in ("reading and training the tokenizer included", "prepared before, nothing to do"):
        tokenize.main([*mixture, f"out={tmp_path / 'new' / 'mixture'}", *how])
        assert says in capsys.readouterr().out
    shard = next((tmp_path / "tokens").glob("train*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    for out in ("mixture", "other"):
        with pytest.raises(ValueError, match=r"train-.* (is damaged|does not match)"):
            tokenize.main([*mixture, f"out={tmp_path / 'new' / out}", *how])
