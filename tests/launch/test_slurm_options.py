"""Options of sbatch in a sweep, without Slurm: tests/slurm runs the batch scripts on a real one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch.run.compose import compose
from launch.sweep.plan import plan_sweep


def test_options_are_taken_as_they_were_typed(monkeypatch):
    """Hydra reads 2024_01 as a number, and refuses a folder that begins with "~"."""
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    options = ["hydra.launcher.account=2024_01", "hydra.launcher.nodes=2", "hydra.sweep.dir=~/2024_01"]
    plan = plan_sweep(["seed=1,2", "hydra/launcher=slurm", "parallel.processes=2", *options])
    assert plan.slurm is not None and plan.slurm.nodes == 2
    assert "--account=2024_01" in plan.slurm.arguments({})
    assert plan.folder == Path("~/2024_01").expanduser()
    assert compose(["++run.dir=2024_01"]).run.dir == "2024_01"


def test_a_flag_has_no_value(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    flags = ["+hydra.launcher.exclusive=true", "+hydra.launcher.hold=false", "+hydra.launcher.mem_per_cpu=2G"]
    plan = plan_sweep(["seed=1,2", "hydra/launcher=slurm", *flags])
    assert plan.slurm is not None
    given = plan.slurm.arguments({"job-name": "sweep"})
    assert {"--exclusive", "--mem-per-cpu=2G", "--job-name=sweep"} <= set(given)
    assert not any("hold" in each for each in given)


@pytest.mark.parametrize("option", ["nodes=0", "nodes=two", "at_once=0", "at_once=two", "at_once=-1"])
def test_numbers_are_checked_before_a_folder_is_written(monkeypatch, option):
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    with pytest.raises(ValueError, match=rf"hydra\.launcher\.{option} is not a number of"):
        plan_sweep(["seed=1,2", "hydra/launcher=slurm", f"hydra.launcher.{option}"])
