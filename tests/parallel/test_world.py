"""Reading and checking the variables that torchrun sets, whole, half set or left in the shell."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from caat.parallel.world import (
    OF_TORCHRUN,
    PLACE,
    check_launcher,
    is_first_rank,
    launched,
    local_rank,
    local_world_size,
    master,
    may_restart,
    restarted,
    variables,
    world_size,
)

ROOT = Path(__file__).parents[2]

WHOLE = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def given(monkeypatch):
    """Sets variables, all others of a launcher being unset."""

    def give(values: dict[str, str]) -> None:
        for name in (*WHOLE, *OF_TORCHRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.mark.parametrize(
    "left",
    [
        {"WORLD_SIZE": "2"},
        {"LOCAL_RANK": "3", "WORLD_SIZE": ""},
        {"TORCHELASTIC_RESTART_COUNT": "1", "LOCAL_WORLD_SIZE": "x"},
    ],
)
def test_without_a_rank_they_mean_nothing(given, left):
    given(left)
    check_launcher.__wrapped__()
    assert not launched() and not set(os.environ) & {*PLACE, *OF_TORCHRUN}


def test_a_whole_set_is_left_alone(given):
    for values in (
        WHOLE,
        {name: WHOLE[name] for name in ("MASTER_ADDR", "MASTER_PORT")} | {"RANK": "0", "WORLD_SIZE": "1"},
    ):
        given(values)
        check_launcher.__wrapped__()
        assert values.items() <= os.environ.items() and launched()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is empty"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 is not a whole number"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE= is not a whole number"),
        ({"RANK": ""}, "RANK= is not a whole number"),
        ({"RANK": "1.5"}, "RANK=1.5 is not a whole number"),
        ({"RANK": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is not a port"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT=x is not a whole number"),
    ],
)
def test_half_a_set_is_named(given, changes, named):
    given({name: value for name, value in {**WHOLE, **changes}.items() if value is not None})
    with pytest.raises(ValueError, match=named):
        check_launcher.__wrapped__()


def test_the_place_of_a_process(given):
    given(WHOLE)
    assert (world_size(), local_rank(), local_world_size(unknown=9), is_first_rank()) == (4, 1, 2, False)
    assert master() == ("localhost", 29500) and not restarted() and not may_restart()
    given(variables(0, 3, "10.0.0.1", 29511) | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert (world_size(), local_rank(), local_world_size(unknown=9), is_first_rank()) == (3, 0, 9, True)
    assert master() == ("10.0.0.1", 29511) and restarted()
    # Left in the shell, without a rank.
    given({"WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert (world_size(), local_rank(), local_world_size(unknown=9), is_first_rank()) == (1, 0, 1, True)


def test_no_other_module_reads_the_variables_of_a_launcher():
    names = {*WHOLE, *OF_TORCHRUN}
    found = {
        str(path.relative_to(ROOT))
        for package in ("caat", "conf", "eval", "launch", "layers")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Constant) and node.value in names)
        or (isinstance(node, ast.keyword) and node.arg in names)
    }
    assert found == {"caat/parallel/world.py"}
