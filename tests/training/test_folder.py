"""The folder of checkpoints: what is visible, what is kept, what a resumed run does with later ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from caat.training.checkpoint import folder as folders
from caat.training.checkpoint.folder import find, latest, publish, retain, roll_back, whole_checkpoints
from caat.training.checkpoint.state import SavedOptimizer, State, read_state, write_state


def add(checkpoints: Path, *steps: int) -> None:
    for step in steps:
        aside = checkpoints / f"step-{step:08}.tmp"
        aside.mkdir(parents=True)
        (aside / "config.json").write_text(str(step))
        publish(aside, checkpoints / f"step-{step:08}")


def steps(checkpoints: Path) -> list[int]:
    return [folders.step_of(folder) for folder in whole_checkpoints(checkpoints)]


def test_the_last_published_is_the_latest(tmp_path):
    add(tmp_path, 10, 20)
    assert find(tmp_path) == tmp_path / "step-00000020"
    assert steps(tmp_path) == [20, 10]
    assert not list(tmp_path.glob("*.tmp"))


def test_half_a_save_is_invisible_and_cleared(tmp_path):
    add(tmp_path, 10)
    (tmp_path / "step-00000020.tmp").mkdir()
    assert find(tmp_path).name == "step-00000010"
    folders.clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000010"]


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [(0, 0, [60, 50, 40, 30, 20, 10]), (2, 0, [60, 50]), (1, 30, [60, 30]), (1, 20, [60, 40, 20])],
)
def test_what_is_kept(tmp_path, keep, keep_every, left):
    add(tmp_path, 10, 20, 30, 40, 50, 60)
    retain(tmp_path, keep, keep_every)
    assert steps(tmp_path) == left


def test_a_checkpoint_that_is_still_used_is_kept(tmp_path):
    add(tmp_path, 10, 20, 30)
    retain(tmp_path, 1, 0, spare=[tmp_path / "step-00000010"])
    assert steps(tmp_path) == [30, 10]


def test_of_those_saved_by_time_the_last_two_are_kept(tmp_path):
    """And all others, those that are damaged among them."""
    add(tmp_path, 10, 20, 30, 40, 50, 60)
    for step, by_time in ((20, True), (30, False), (40, True), (50, True), (60, True)):
        written = State(step=step, tokens=0, position=0, sequence=16, seed=1, data="", by_time=by_time)
        write_state(tmp_path / f"step-{step:08}", written, SavedOptimizer("adamw", step, ()), {})
    retain(tmp_path, None, 20)
    assert steps(tmp_path) == [60, 50, 40, 30, 20, 10]
    retain(tmp_path, None, 0)
    assert steps(tmp_path) == [60, 50, 30, 10]
    found = read_state(tmp_path / "step-00000060")[0]
    assert (found.skipped, found.skipped_in_a_row) == (0, 0), "a run starts without skipped steps"


def test_what_cannot_be_deleted_yet_is_no_failure(tmp_path, monkeypatch):
    """As on NFS, while somebody reads it: something stays in the folder, and the next time tries again."""
    add(tmp_path, 10, 20, 30)
    with monkeypatch.context() as nfs:
        nfs.setattr(folders.shutil, "rmtree", lambda *_, ignore_errors=False: ignore_errors or 1 / 0)
        retain(tmp_path, 1, 0)
        folders.clear_leftovers(tmp_path)
        add(tmp_path, 20)
        retain(tmp_path, 1, 0)
    assert latest(tmp_path) is not None and 30 in steps(tmp_path)
    folders.clear_leftovers(tmp_path)
    assert not list(tmp_path.glob("*.deleted"))


def test_the_latest_is_never_deleted(tmp_path):
    add(tmp_path, 10, 20, 30)
    folders.point_latest_at(tmp_path / "step-00000010")
    retain(tmp_path, 1, 0)
    assert steps(tmp_path) == [30, 10]
    assert latest(tmp_path) == tmp_path / "step-00000010"


def test_going_back_sets_later_checkpoints_aside(tmp_path):
    add(tmp_path, 10, 20, 30)
    aside = roll_back(tmp_path, tmp_path / "step-00000010")
    assert latest(tmp_path) == tmp_path / "step-00000010"
    assert steps(tmp_path) == [10]
    assert sorted(path.name for path in aside) == ["step-00000020.aside", "step-00000030.aside"]
    assert (aside[0] / "config.json").is_file()


def test_a_kill_between_rename_and_pointer_loses_nothing(tmp_path):
    """The new checkpoint is whole, `latest` still names the one before it."""
    add(tmp_path, 10, 20)
    folders.point_latest_at(tmp_path / "step-00000010")
    assert find(tmp_path).name == "step-00000010"
    (tmp_path / "latest").write_text("step-000")
    assert find(tmp_path).name == "step-00000020"


def test_a_first_checkpoint_without_pointer_is_found(tmp_path):
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert find(tmp_path) == tmp_path / "checkpoints" / "step-00000003"
    (tmp_path / "checkpoints" / "step-00000003").rmdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find(tmp_path)


def test_saving_the_same_step_again_replaces_it(tmp_path):
    add(tmp_path, 10)
    (tmp_path / "step-00000010" / "old").touch()
    add(tmp_path, 10)
    assert [path.name for path in find(tmp_path).iterdir()] == ["config.json"]
