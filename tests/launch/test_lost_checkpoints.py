"""Checkpoints that are damaged or gone: passed over or refused, and no run begins again by mistake."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from caat.runs.status import read_status, write_status
from conf.reading.saved import save_config
from launch.pretrain import main as pretrain
from launch.run.compose import compose
from launch.run.resume import (
    check_resume,
    checkpoints_to_try,
)
from launch.run.validate import validate
from tests.launch.saved_run import saved_run, steps


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return saved_run(tmp_path / "run")


def test_damaged_json_is_passed_over_or_refused(run):
    (run / "checkpoints/step-00000150/state.json").write_text("{}")
    state = check_resume(compose(["resume=run"]))
    assert state is not None and state.step == 100
    with pytest.raises(ValueError, match=r"step-00000150.*on_damage=stop"):
        check_resume(compose(["resume=run", "checkpoint.on_damage=stop"]))
    for step in (50, 100):
        (run / f"checkpoints/step-{step:08}/config.json").write_text("{")
    with pytest.raises(ValueError, match="no checkpoint to resume from is intact"):
        check_resume(compose(["resume=run"]))


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", '"x"', "[" * 10**5, '{"xxh3_128": [], "state_xxh3_128": ""}']
)
def test_a_state_of_another_shape_is_passed_over(run, text):
    (run / "checkpoints/step-00000150/state.json").write_text(text)
    state = check_resume(compose(["resume=run"]))
    assert state is not None and state.step == 100


def test_a_configuration_with_one_digit_changed_is_passed_over(run):
    """The configuration is valid, but it is not that of the trained model."""
    path = run / "checkpoints/step-00000150/config.json"
    text = path.read_text()
    path.write_text(text.replace('"rope_theta": 10000.0', '"rope_theta": 10001.0'))
    assert path.read_text() != text
    state = check_resume(compose(["resume=run"]))
    assert state is not None and state.step == 100
    with pytest.raises(
        ValueError, match=r"config.json is damaged: .* the checksum in state.json.*on_damage=stop"
    ):
        check_resume(compose(["resume=run", "checkpoint.on_damage=stop"]))


def test_a_latest_that_is_gone_is_passed_over_or_refused(run):
    shutil.rmtree(run / "checkpoints/step-00000150")
    for settings in (["run.dir=run", "resume=auto"], ["resume=run"]):
        assert steps(checkpoints_to_try(compose(settings))) == [150, 100, 50]
        state = check_resume(compose(settings))
        assert state is not None and state.step == 100
        with pytest.raises(ValueError, match=r"step-00000150 does not exist \(checkpoint.on_damage=stop\)"):
            check_resume(compose([*settings, "checkpoint.on_damage=stop"]))


def lose_all(run: Path) -> None:
    for folder in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)


def lose_folder(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    write_status(run, "finished")


def lose_folder_under_slurm(run: Path) -> None:
    """slurm/train.sh sets the status of an earlier start aside."""
    lose_folder(run)
    (run / "status.json").rename(run / "status.json.before")


def dangle(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(run / "not mounted")


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        (lose_all, "no checkpoint to resume from is intact: run/checkpoints/step-00000150 does not exist"),
        (lose_folder, "run.dir=run is finished, so it was saved, but run/checkpoints holds no checkpoint"),
        (lose_folder_under_slurm, "run.dir=run is finished, so it was saved, but run/checkpoints holds no"),
        (dangle, "run/checkpoints does not lead to a folder ("),
    ],
)
def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(run, lose, says):
    lose(run)
    with pytest.raises(ValueError, match=re.escape(says) + ".*[Rr]estore"):
        validate(compose(["run.dir=run", "resume=auto"]), 1)


def test_a_queued_run_whose_checkpoints_are_gone_keeps_its_status(run, capsys):
    save_config(compose(["run.dir=run", "resume=auto"]), Path("config.yaml"))
    Path("config.yaml").rename(run / "config.yaml")
    lose_folder(run)
    with pytest.raises(SystemExit, match="2"):
        pretrain(["--queued-run", "run"])
    assert "so it was saved" in capsys.readouterr().err
    assert read_status(run) == "finished"


def test_a_run_that_never_saved_begins_again(run):
    shutil.rmtree(run / "checkpoints")
    write_status(run, "failed")
    assert check_resume(compose(["run.dir=run", "resume=auto"])) is None
