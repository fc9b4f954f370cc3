"""A run on this machine: the status that it leaves, however its processes end."""

from __future__ import annotations

import pytest

from caat.runs.status import read_status, read_why, write_status
from conf.processes import LaunchConfig
from conf.schema import Config
from launch import pretrain
from launch.command import errors
from launch.command.processes import Stopped
from launch.run import local
from launch.run.compose import compose
from launch.run.folder import create_run_folder, leave_finished, open_run_folder
from launch.run.start import Start


def start_of(config: Config) -> Start:
    folder = open_run_folder(config)
    return Start(folder, "", "", 0, folder)


def test_a_run_whose_process_was_killed_has_failed(tmp_path, monkeypatch):
    for status, before, after in (
        (137, "running", "failed"),
        (3, "failed", "failed"),
        (75, "stopped", "stopped"),
    ):

        def ended(*_, status=status, before=before):
            write_status(tmp_path, before, "as it said")
            return status

        monkeypatch.setattr(local, "run_workers", ended)
        assert (
            local.run_in_processes(Start(tmp_path, "", "", 0, tmp_path), LaunchConfig(processes=2)) == status
        )
        assert read_status(tmp_path) == after
        assert read_why(tmp_path) == ("a process was ended by SIGKILL" if status == 137 else "as it said")


def test_a_signal_after_the_last_step_is_no_failure(tmp_path, monkeypatch):
    for status, ends in (("finished", 0), ("stopped", 75), ("running", 143)):

        def stopped(*_, status=status):
            write_status(tmp_path, status)
            raise Stopped(143)

        monkeypatch.setattr(local, "run_workers", stopped)
        try:
            code = local.run_in_processes(Start(tmp_path, "", "", 0, tmp_path), LaunchConfig(processes=2))
        except Stopped as error:
            code = error.code
        assert code == ends
        assert read_status(tmp_path) == ("failed" if status == "running" else status)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_interrupted_before_it_trains_says_so(tmp_path, monkeypatch, capsys, processes):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    config = compose([f"run.dir={tmp_path / 'run'}", f"launch.processes={processes}"])
    monkeypatch.setattr(pretrain, "set_up", lambda _: start_of(config))
    monkeypatch.setattr(local, "run_workers", interrupted)
    monkeypatch.setattr(pretrain, "_work", interrupted)
    with pytest.raises(SystemExit) as end:
        pretrain.main([f"launch.processes={processes}"])
    assert end.value.code == 130 and "caat: interrupted" in capsys.readouterr().err
    assert read_status(tmp_path / "run") == "failed"
    assert read_why(tmp_path / "run") == "interrupted before training began"


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*_):
        write_status(tmp_path / "run", "stopped")
        raise Stopped(130)

    config = compose([f"run.dir={tmp_path / 'run'}", "launch.processes=2"])
    monkeypatch.setattr(pretrain, "set_up", lambda _: start_of(config))
    monkeypatch.setattr(local, "run_workers", stopped)
    with pytest.raises(Stopped) as stop:
        pretrain.main(["launch.processes=2", "optim.lr=2e-3", "run.dir=other", "resume=elsewhere"])
    assert stop.value.code == 75
    command = (
        f"to resume: caat pretrain launch.processes=2 optim.lr=2e-3 run.dir={tmp_path / 'run'} resume=auto"
    )
    assert command in capsys.readouterr().err


def test_reasons():
    assert errors.reason(3) == "too many steps in a row were not finite"
    assert errors.reason(137) == "a process was ended by SIGKILL"
    assert errors.reason(1) == "a process failed with status 1"
    # Statuses above 128: one that is no signal, and a signal without a name.
    assert errors.reason(255) == "a process failed with status 255"
    assert errors.reason(128 + 40) == "a process was ended by signal 40"


def test_a_run_that_was_done_says_what_it_lacks(tmp_path, capsys):
    config = compose([f"run.dir={tmp_path / 'run'}"])
    create_run_folder(config)
    leave_finished(config)
    assert read_status(tmp_path / "run") == "finished"
    assert f"caat evaluate checkpoint={tmp_path / 'run'}" in capsys.readouterr().out
    (tmp_path / "run/summary.json").touch()
    leave_finished(config)
    assert capsys.readouterr().out == "nothing to do: all train.steps=200 steps are done\n"


def test_a_folder_that_is_gone_on_in_no_longer_says_how_it_ended(tmp_path):
    config = compose([f"run.dir={tmp_path / 'run'}"])
    open_run_folder(config)
    assert read_status(tmp_path / "run") == "starting"
    write_status(tmp_path / "run", "finished")
    for name in ("summary.json", "loss.png"):
        (tmp_path / "run" / name).touch()
    config.resume, config.train.steps = "auto", 400
    open_run_folder(config)
    assert read_status(tmp_path / "run") == "starting"
    # They are those of 200 steps.
    assert not (tmp_path / "run/summary.json").exists() and not (tmp_path / "run/loss.png").exists()
