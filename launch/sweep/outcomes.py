"""The outcomes of a sweep's runs: a table on the terminal and sweep.json in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from caat.storage.records import read_record
from launch.run.resume_command import resume_command
from launch.sweep.run import Run


@dataclass
class Outcome:
    """``status``: finished, finished before, failed, stopped, not started, queued."""

    run: str
    folder: str
    status: str
    why: str
    # The command that resumes this run alone.
    resume: str

    @classmethod
    def of(cls, run: Run, status: str) -> Outcome:
        command = resume_command(run.overrides, run.folder)
        return cls(run.name, str(run.folder), status, "", command)


@dataclass(frozen=True)
class Figures:
    """The fields of a run's summary.json that the table shows."""

    validation_loss: float | None


def report(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Print the table, the commands to resume and to compare runs, and the path of sweep.json."""
    width = max(len("run"), *(len(outcome.run) for outcome in outcomes))
    losses = [_validation_loss(outcome) for outcome in outcomes]
    print(f"\n{'run':<{width}}  {'status':<15}  {'loss':>7}  why")
    for outcome, loss in zip(outcomes, losses, strict=True):
        shown, why = "-" if loss is None else f"{loss:.4f}", " ".join(outcome.why.split())
        print(f"{outcome.run:<{width}}  {outcome.status:<15}  {shown:>7}  {why}".rstrip())
    unfinished = [outcome for outcome in outcomes if outcome.status in ("failed", "stopped", "not started")]
    if unfinished:
        print("\nthe same command resumes these and skips finished runs; to resume one of them alone:")
        for outcome in unfinished:
            print(f"  {outcome.resume}")
    if any(loss is not None for loss in losses):
        print(f"\nto compare the losses, with plots: caat report {quote(str(folder))}")
    path = folder / "sweep.json"
    rows = [
        asdict(outcome) | {"validation_loss": loss} for outcome, loss in zip(outcomes, losses, strict=True)
    ]
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(path)


def _validation_loss(outcome: Outcome) -> float | None:
    """Return the loss of a finished run; None if its figures are missing, damaged or not finite."""
    if not outcome.status.startswith("finished"):
        return None
    try:
        return read_record(Path(outcome.folder) / "summary.json", Figures).validation_loss
    except ValueError:
        return None
