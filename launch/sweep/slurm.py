"""`hydra/launcher=slurm`: the runs of a sweep as tasks of a job array, each from its config.yaml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import launch
from conf.checks import require
from launch.command.processes import import_environment
from launch.run.folder import open_run_folder
from launch.sweep.outcomes import Outcome
from launch.sweep.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

SCRIPTS = Path(str(launch.__file__)).parents[1] / "slurm"
# File in a run folder that names the job that trains the run, as <array>_<task>.
JOB = "slurm_job"


@dataclass(frozen=True)
class SlurmOptions:
    """Long options of sbatch, with their values if any; ``at_once`` tasks run at a time (None: all)."""

    options: Mapping[str, str]
    at_once: int | None

    @classmethod
    def of(cls, hydra: DictConfig) -> SlurmOptions | None:
        """Read ``hydra.launcher``; None if the runs are trained on this machine. Raises ``ValueError``."""
        launcher = hydra.runtime.choices["hydra/launcher"]
        if launcher == "basic":
            return None
        if launcher != "slurm":
            raise ValueError(f"hydra/launcher={launcher} is not supported: choose slurm, or leave it out")
        if shutil.which("sbatch") is None:
            raise ValueError("hydra/launcher=slurm needs sbatch, which is missing: use a host that has it")
        given = {key: value for key, value in hydra.launcher.items() if value is not None}
        for name, what in (("nodes", "nodes"), ("at_once", "tasks")):
            number = str(given.get(name, 1))
            require(
                number.isdecimal() and int(number) > 0,
                f"hydra.launcher.{name}={number} is not a number of {what}: give 1 or more, or leave it out",
            )
        at_once = given.pop("at_once", None)
        options = {
            str(key).replace("_", "-"): "" if value is True else str(value)
            for key, value in given.items()
            if value is not False
        }
        return cls(options, at_once)

    def arguments(self, defaults: Mapping[str, object]) -> list[str]:
        """Return the options, and ``defaults`` in place of those that are not given, as sbatch takes them."""
        return [
            f"--{name}={value}" if value else f"--{name}"
            for name, value in {**defaults, **self.options}.items()
        ]

    @property
    def nodes(self) -> int:
        return int(self.options.get("nodes", "1"))


def queued(runs: Sequence[Run]) -> dict[str, str]:
    """Return the job of each of ``runs`` that is queued or running, by the run's name."""
    jobs = {run.name: (run.folder / JOB) for run in runs}
    jobs_told = {name: path.read_text().strip() for name, path in jobs.items() if path.is_file()}
    if not jobs_told:
        return {}
    waiting = _call("squeue", "--me", "--noheader", "--array", "--format=%F_%K").split()
    return {name: job for name, job in jobs_told.items() if job in waiting}


def submit(runs: Sequence[Run], slurm: SlurmOptions, folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Queue ``runs`` as one job array. Raises ``ValueError`` with sbatch's message if it refuses."""
    if not runs:
        return
    folders = [open_run_folder(run.config, queued=True).resolve() for run in runs]
    # A new list for each submission: waiting tasks of an earlier one still read theirs.
    tasks = next(path for number in count(1) if not (path := folder / f"tasks-{number}.txt").exists())
    launches = [run.config.launch for run in runs]
    lines = [
        f"{launch.processes} {launch.max_restarts} {path}\n"
        for launch, path in zip(launches, folders, strict=True)
    ]
    tasks.write_text("".join(lines), encoding="utf-8")
    at_once = f"%{slurm.at_once}" if slurm.at_once else ""
    defaults = {
        "array": f"0-{len(runs) - 1}{at_once}",
        "job-name": folder.name,
        "output": folder / "slurm-%A_%a.log",
    }
    given = slurm.arguments(defaults)
    printed = _call("sbatch", "--parsable", *given, str(SCRIPTS / "array.sbatch"), str(tasks.resolve()))
    job = printed.strip().split(";")[0]  # "JOB", or "JOB;CLUSTER"
    for task, (run, path) in enumerate(zip(runs, folders, strict=True)):
        (path / JOB).write_text(f"{job}_{task}\n")
        outcomes[run.name].status, outcomes[run.name].why = "queued", f"as job {job}_{task}"


def _call(*command: str) -> str:
    # sbatch passes its environment to the job, which must use the same installation of caat.
    environment = {**os.environ, **import_environment(), "SCRIPTS": str(SCRIPTS), "PYTHON": sys.executable}
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not installed: use a host that has Slurm's commands") from None
    if result.returncode:
        raise ValueError(f"{command[0]} says: {result.stderr.strip()}")
    return result.stdout
