"""If ranks were started with different settings or files, all of them report it before the first step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from caat.data.corpus import data_fingerprint, prepare
from caat.supervision.control import Control
from caat.topology.methods import make_schedule
from caat.topology.schedule_file import write_schedule
from conf.data import DataConfig
from launch.run.agreement import check_ranks
from launch.run.compose import compose
from tests.paragraphs import PARAGRAPHS
from tests.topology.networks import unit


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


def in_own_folder(folder: Path, settings: list[str], tokens: Path) -> str:
    before = Path.cwd()
    os.chdir(folder / str(dist.get_rank()))
    try:
        return verdict([settings] * 2, [tokens] * 2)
    finally:
        os.chdir(before)


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


def test_different_files_of_a_schedule_are_named(ranks, tokens, tmp_path):
    # As on two hosts, each with a file of its own at the same path.
    for rank, method in enumerate(("ring", "two-way-ring")):
        (tmp_path / str(rank)).mkdir()
        write_schedule(make_schedule(unit("ring:2"), method), tmp_path / str(rank) / "own.json")
    found = ranks(2).run(in_own_folder, tmp_path, ["data_sync.schedule=own.json"], tokens[0])
    assert found[0] == found[1] and "the file own.json is " in found[0]
