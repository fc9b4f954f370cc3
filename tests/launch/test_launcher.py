"""What is left in the shell, or half set, of the variables that torchrun sets."""

from __future__ import annotations

import os

import pytest

from launch.command.launcher import OF_TORCHRUN, PLACE, check_launcher
from launch.command.processes import under_torchrun

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
    assert not under_torchrun() and not set(os.environ) & {*PLACE, *OF_TORCHRUN}


def test_a_whole_set_is_left_alone(given):
    for values in (
        WHOLE,
        {name: WHOLE[name] for name in ("MASTER_ADDR", "MASTER_PORT")} | {"RANK": "0", "WORLD_SIZE": "1"},
    ):
        given(values)
        check_launcher.__wrapped__()
        assert values.items() <= os.environ.items() and under_torchrun()


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
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is not a port"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT=x is not a whole number"),
    ],
)
def test_half_a_set_is_named(given, changes, named):
    given({name: value for name, value in {**WHOLE, **changes}.items() if value is not None})
    with pytest.raises(ValueError, match=named):
        check_launcher.__wrapped__()
