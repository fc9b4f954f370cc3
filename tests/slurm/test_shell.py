"""The batch scripts as shell, without a Slurm."""

from __future__ import annotations

import shutil
import subprocess

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
