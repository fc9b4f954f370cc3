"""The user's command for each new checkpoint."""

from __future__ import annotations

import sys

from caat.training.checkpoint.after import After

COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


def test_each_checkpoint_is_handed_over_in_order(tmp_path):
    folders = [tmp_path / f"step-{step:08}" for step in (1, 2)]
    for folder in folders:
        folder.mkdir()
        (folder / "model.safetensors").write_text(folder.name)
    after = After([sys.executable, "-c", COPY, "%p", str(tmp_path / "store/%n")], tmp_path)
    for folder in folders:
        after.start(folder)
    assert after.unfinished == folders
    said: list[str] = []
    after.finish(said.append)
    assert said == [f"waiting for checkpoint.after of {folder.name}" for folder in folders]
    assert after.unfinished == []
    for folder in folders:
        assert (tmp_path / "store" / folder.name / "model.safetensors").read_text() == folder.name


def test_a_failure_is_named_once(tmp_path):
    after = After([sys.executable, "-c", "import sys; sys.exit('the bucket is full: %n')"], tmp_path)
    folder, said = tmp_path / "step-00000001", list[str]()
    after.start(folder)
    after.finish(said.append)
    assert said[1].startswith(f"WARNING: checkpoint.after of {folder}: ")
    assert said[1].endswith("ended with status 1: the bucket is full: step-00000001")
    after.finish(said.append)
    assert len(said) == 2


def test_a_program_that_vanished_is_a_problem_and_not_an_error(tmp_path):
    gone, said = tmp_path / "gone", list[str]()
    after = After([str(gone)], tmp_path)
    after.start(tmp_path)
    after.finish(said.append)
    problem = f"{gone} cannot be started (No such file or directory)"
    assert said[-1] == f"WARNING: checkpoint.after of {tmp_path}: {problem}"


def test_what_did_not_end_well_runs_again_at_the_next_start(tmp_path):
    """The record is there before the command starts, so that a killed run leaves it."""
    folders = [tmp_path / f"step-{step:08}" for step in (1, 2, 3)]
    for folder in folders:
        folder.mkdir()
    code = "import os, sys; sys.exit(not os.path.exists(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "bucket")]
    after, said = After(command, tmp_path), list[str]()
    for folder in folders:
        after.start(folder)
    after.finish(said.append)
    assert sum("WARNING" in text for text in said) == 3
    folders[0].rmdir()
    (tmp_path / "bucket").touch()

    assert After([], tmp_path).start_again() == []
    again = After(command, tmp_path)
    assert again.start_again() == [folder.name for folder in folders[1:]]
    again.finish(said.append)
    assert sum("WARNING" in text for text in said) == 3
    assert After(command, tmp_path).start_again() == []
