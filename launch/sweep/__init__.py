"""`caat pretrain -m`: one run for every combination of values, on this machine or as a Slurm job array.

All runs are in one folder, which the same command finds again: it skips finished runs and resumes others.
"""

from __future__ import annotations

from collections.abc import Sequence

from filelock import FileLock, Timeout

from caat.parallel.world import launched
from launch.sweep.here import train
from launch.sweep.outcomes import Outcome, report
from launch.sweep.plan import plan_sweep
from launch.sweep.slurm import queued, submit


def sweep(argv: Sequence[str]) -> int:
    """Train every run of ``argv`` (without ``-m``) to its end and return the exit status: 1 if one did not.

    A signal stops the current run in the usual way, and no other run is started. Raises ``ValueError`` for a
    mistake in any of the runs before the first one starts.
    """
    if launched():
        raise ValueError("-m starts the processes of each run itself: leave torchrun out")
    plan = plan_sweep(argv)
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another caat is training the runs in {plan.folder}: wait until it ends") from None
    with lock:
        jobs = queued(plan.runs)
        finished = {run.name for run in plan.runs if run.finished()}
        to_do = [run for run in plan.runs if run.name not in finished and run.name not in jobs]
        outcomes = {run.name: Outcome.of(run, "not started") for run in plan.runs}
        for name in finished:
            outcomes[name].status = "finished before"
        for name, job in jobs.items():
            outcomes[name].status, outcomes[name].why = "queued", f"as job {job}"
        print(f"{len(plan.runs)} runs in {plan.folder}: {len(to_do)} to do, {len(finished)} finished before")
        try:
            if plan.slurm is None:
                train(to_do, outcomes)
            else:
                submit(to_do, plan.slurm, plan.folder, outcomes)
        finally:
            report(plan.folder, list(outcomes.values()))
    return int(any(outcome.status in ("failed", "stopped") for outcome in outcomes.values()))
