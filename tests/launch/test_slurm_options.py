"""Options of sbatch in a sweep, without Slurm: tests/slurm runs the batch scripts on a real one."""

from __future__ import annotations

import shutil

from launch.sweep.plan import plan_sweep


def test_a_flag_has_no_value(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    flags = ["+hydra.launcher.exclusive=true", "+hydra.launcher.hold=false", "+hydra.launcher.mem_per_cpu=2G"]
    plan = plan_sweep(["seed=1,2", "hydra/launcher=slurm", *flags])
    assert plan.slurm is not None
    given = plan.slurm.arguments({"job-name": "sweep"})
    assert {"--exclusive", "--mem-per-cpu=2G", "--job-name=sweep"} <= set(given)
    assert not any("hold" in each for each in given)
