"""The batch scripts as shell, without a Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from launch.sweep.slurm import SCRIPTS

SHELL = sorted(SCRIPTS.glob("*.s*"))


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_the_script_is_good_shell(script):
    checker = ["shellcheck"] if shutil.which("shellcheck") else ["bash", "-n"]
    result = subprocess.run([*checker, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_all_scripts_are_there():
    names = ["array.sbatch", "evaluate.sbatch", "pretrain.sbatch", "train.sh"]
    assert [script.name for script in SHELL] == names


def train(
    folder: Path,
    script: str,
    *arguments: str,
    status: str | None,
    ended: int,
    before: str | None = None,
    restarts: int = 0,
    begun: bool = False,
) -> subprocess.CompletedProcess:
    """The script with a ``srun`` that trains nothing: it leaves ``status`` and ends with ``ended``.

    ``before`` is the status of an earlier start, and ``begun`` whether it wrote a config.yaml.
    """
    run = folder / "run"
    (folder / "bin").mkdir()
    run.mkdir()
    if begun:
        (run / "config.yaml").touch()
    if before:
        (run / "status.json").write_text(json.dumps({"status": before}))
    (folder / "ended.json").write_text(json.dumps({"status": status}))
    leave = f'cp "{folder}/ended.json" "{run}/status.json"; ' if status else ""
    leave += f'echo "$@"; echo threads $OMP_NUM_THREADS; exit {ended}'
    for name, does in (("srun", leave), ("scontrol", 'echo scontrol "$@"')):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        **{"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SCRIPTS": str(SCRIPTS), "RUN": str(run)},
        **{"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here", "HEAD": "here"},
        "SLURM_RESTART_COUNT": str(restarts),
        **{"PROCESSES": "2", "SLURM_CPUS_PER_TASK": "9", "SLURM_SUBMIT_DIR": str(folder)},
    }
    command = ["bash", str(SCRIPTS / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("status", "ended", "code", "requeued"),
    [
        ("finished", 0, 0, False),
        # The signal came while the last figures were written: torchrun does not know that all is done.
        ("finished", 1, 0, False),
        ("stopped", 1, 1, True),
        ("failed", 3, 3, False),
    ],
)
def test_what_a_job_makes_of_how_its_run_ended(tmp_path, status, ended, code, requeued):
    done = train(tmp_path, "pretrain.sbatch", "model=tiny", status=status, ended=ended)
    assert done.returncode == code, done.stderr
    assert ("scontrol requeue 7" in done.stdout) == requeued
    assert "threads 4" in done.stdout


@pytest.mark.parametrize(("restarts", "begun"), [(0, False), (0, True), (1, False), (1, True)])
def test_a_requeued_job_continues_in_its_own_folder(tmp_path, restarts, begun):
    """Where it began is in its config.yaml, if it got that far."""
    settings, how = ["model=tiny", "resume=outputs/first", "seed=2"], {"restarts": restarts, "begun": begun}
    done = train(tmp_path, "pretrain.sbatch", *settings, status="stopped", ended=1, **how)
    given = f"resume=auto model=tiny {'' if restarts and begun else 'resume=outputs/first '}seed=2"
    assert f"run.dir='{tmp_path / 'run'}' {given}" in done.stdout


@pytest.mark.parametrize("before", ["finished", "stopped"])
def test_a_start_that_said_nothing_leaves_what_an_earlier_one_said(tmp_path, before):
    done = train(tmp_path, "pretrain.sbatch", "train.stepz=5", status=None, ended=2, before=before)
    assert done.returncode == 2 and "requeue" not in done.stdout
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["status.json"]


def test_what_an_earlier_start_said_is_not_taken_for_this_one(tmp_path):
    done = train(tmp_path, "pretrain.sbatch", status="failed", ended=3, before="stopped")
    assert done.returncode == 3 and "requeue" not in done.stdout
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["status.json"]


def test_a_run_folder_that_the_script_would_not_look_into_is_refused(tmp_path):
    done = train(tmp_path, "pretrain.sbatch", "run.dir=mine", status="finished", ended=0)
    assert done.returncode == 2 and "give RUN=mine" in done.stderr and "threads" not in done.stdout
