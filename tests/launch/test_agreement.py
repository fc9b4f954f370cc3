"""If ranks were started with different settings or files, all of them report it before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from caat.data.corpus import data_fingerprint, prepare
from caat.supervision.control import Control
from conf.data import DataConfig
from launch.run.agreement import check_ranks
from launch.run.compose import compose
from tests.paragraphs import PARAGRAPHS


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> list[Path]:
    """Tokens prepared from the same text in two places, and from a part of it."""
    folder = tmp_path_factory.mktemp("texts")
    found = []
    for name, paragraphs in (("a", PARAGRAPHS), ("b", PARAGRAPHS), ("c", PARAGRAPHS[:-5])):
        text = folder / f"{name}.txt"
        text.write_text("\n\n".join(paragraphs))
        data = DataConfig(path=str(text), vocab_size=400, validation=0.1, dir=str(folder / name), workers=1)
        found.append(prepare(data))
    return found


def verdict(settings: list[list[str]], tokens: list[Path]) -> str:
    rank = dist.get_rank()
    try:
        check_ranks(compose(settings[rank]), data_fingerprint(tokens[rank]), Control())
    except ValueError as error:
        return str(error)
    return "alike"


def test_ranks_started_alike(ranks, tokens):
    places = [["run.dir=x", "data.path=a.txt"], ["run.dir=y", "data.path=b.txt", "tracker.samples=2"]]
    assert ranks(2).run(verdict, places, tokens[:2]) == ["alike"] * 2


@pytest.mark.parametrize(
    ("other", "text", "says"),
    [
        (["seed=2"], 1, "seed is 1 on rank 0 and 2 on rank 1"),
        (["sync.ratio=0.25"], 1, "sync.ratio is 0.5 on rank 0 and 0.25 on rank 1"),
        ([], 2, "the text is "),
    ],
)
def test_what_differs_is_named(ranks, tokens, other, text, says):
    found = ranks(2).run(verdict, [[], other], [tokens[0], tokens[text]])
    assert found[0] == found[1] and says in found[0] and "the same settings" in found[0]
