"""Mistakes about schedules and networks: one line, before any process starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.pretrain import main
from tests.launch.test_mistakes import check_refused

# Settings, number of processes, and what the message must contain.
MISTAKES = {
    "a schedule of no network": (
        ["data_sync.schedule=auto"],
        2,
        ["data_sync.schedule=auto needs the network between replicas", "data_sync.topology="],
    ),
    "a network without a schedule": (
        ["data_sync.topology=ring:2"],
        2,
        ["data_sync.topology=ring:2 has no effect", "set data_sync.schedule=auto"],
    ),
    "a schedule with a codec": (
        ["data_sync.schedule=auto", "data_sync.topology=ring:2", "data_sync.codec=int8"],
        2,
        ["data_sync.codec=int8 does not go with data_sync.schedule=auto", "leave one of the two out"],
    ),
    "a network of other replicas": (
        ["data_sync.schedule=auto", "data_sync.topology=mesh:2x2", "parallel.processes=1"],
        2,
        ["data_sync.topology=mesh:2x2 is for 4 replicas, but there are 2", "give one for 2"],
    ),
    "an unknown network": (
        ["data_sync.schedule=auto", "data_sync.topology=star:4"],
        4,
        ["topology=star:4 is neither a name nor a JSON file", "ring:8"],
    ),
    "a missing schedule": (["data_sync.schedule=lost.json"], 4, ["lost.json cannot be read"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_settings_that_do_not_go_together(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(*MISTAKES[name])


RING = [[1, 0, 1, 0, "reduce"], [1, 1, 0, 1, "reduce"], [2, 1, 0, 0, "copy"], [2, 0, 1, 1, "copy"]]


@pytest.mark.parametrize(
    ("steps", "more", "says"),
    [
        (RING[1:], [], ["chunk 0", "is lost"]),
        ([*RING, [2, 1, 0, 1, "copy"]], [], ["step 2 uses the link from 1 to 0 twice"]),
        # The first replica gets both sums.
        (
            [[1, 1, 0, 0, "reduce"], [2, 1, 0, 1, "reduce"], [3, 0, 1, 0, "copy"], [4, 0, 1, 1, "copy"]],
            [],
            ["gives replica 1 no sum", "zero.stage=0"],
        ),
        (RING, ["train.global_batch=12", "launch.processes=3"], ["is for 2 replicas, but there are 3"]),
    ],
)
def test_a_wrong_schedule_is_refused_before_the_run_starts(steps, more, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = {"nodes": 2, "links": [[0, 1], [1, 0]], "chunks": 2, "steps": steps}
    Path("ring.json").write_text(json.dumps(content))
    settings = ["data_sync.schedule=ring.json", "parallel.processes=1", "launch.processes=2", *more]
    with pytest.raises(SystemExit) as end:
        main(settings)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1, error
    for text in ["ring.json", *says]:
        assert text in error
    assert [path.name for path in tmp_path.iterdir()] == ["ring.json"]
