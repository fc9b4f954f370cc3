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


def train(folder: Path, script: str, *arguments: str, status: str, ended: int) -> subprocess.CompletedProcess:
    """The script with a ``srun`` that trains nothing: it leaves ``status`` and ends with ``ended``."""
    run = folder / "run"
    (folder / "bin").mkdir()
    run.mkdir()
    (folder / "ended.json").write_text(json.dumps({"status": status}))
    leave = f'cp "{folder}/ended.json" "{run}/status.json"; echo threads $OMP_NUM_THREADS; exit {ended}'
    for name, does in (("srun", leave), ("scontrol", 'echo scontrol "$@"')):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        **{"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SCRIPTS": str(SCRIPTS), "RUN": str(run)},
        **{"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here", "HEAD": "here"},
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


def test_a_run_folder_that_the_script_would_not_look_into_is_refused(tmp_path):
    done = train(tmp_path, "pretrain.sbatch", "run.dir=mine", status="finished", ended=0)
    assert done.returncode == 2 and "give RUN=mine" in done.stderr and "threads" not in done.stdout
