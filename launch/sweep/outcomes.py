"""What became of the runs of a sweep: a table on the terminal and sweep.json in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.go_on import command_to_go_on

if TYPE_CHECKING:
    from launch.sweep.plan import Run


@dataclass
class Outcome:
    """``status``: finished, finished before, failed, stopped, not started, queued."""

    run: str
    folder: str
    status: str
    why: str
    # The command that goes on with this run alone.
    resume: str

    @classmethod
    def of(cls, run: Run, status: str) -> Outcome:
        command = command_to_go_on(run.overrides, run.folder)
        return cls(run.name, str(run.folder), status, "", command)


def report(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Print the table, then how to go on with what is not finished, then the path of sweep.json."""
    width = max(len("run"), *(len(outcome.run) for outcome in outcomes))
    print(f"\n{'run':<{width}}  {'status':<15}  why")
    for outcome in outcomes:
        print(f"{outcome.run:<{width}}  {outcome.status:<15}  {' '.join(outcome.why.split())}".rstrip())
    unfinished = [outcome for outcome in outcomes if outcome.status in ("failed", "stopped", "not started")]
    if unfinished:
        print("\nthe same command goes on with these and leaves finished runs alone; one of them by itself:")
        for outcome in unfinished:
            print(f"  {outcome.resume}")
    path = folder / "sweep.json"
    path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")
    print(path)
