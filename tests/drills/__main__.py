"""`make drills`: breaks real runs in every way we know of, and prints what became of them.

Some drills mount a tmpfs or cut a link, which takes root; without it they are left out and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.drills.drills import Drill, all_drills
from tests.drills.islands import IslandDrill, island_drills
from tests.drills.outcome import Outcome
from tests.drills.run import Run
from tests.paragraphs import PARAGRAPHS

NEED_ROOT = ("full disk", "read-only", "cut link")


def main() -> int:
    """Run the drills; the status is 1 if one was not survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="how many times to kill -9 at random")
    parser.add_argument("--only", default="", help="drills whose name contains this")
    parser.add_argument("--out", default=f"outputs/drills-{datetime.now():%Y%m%d-%H%M%S}.json")
    arguments = parser.parse_args()
    results: list[tuple[str, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="caat-drills-") as folder:
        base = Path(folder)
        text = base / "own.txt"
        text.write_text("\n\n".join(PARAGRAPHS))
        reference = Run(base / "reference", text)
        assert reference.run() == 0, reference.output
        drills = all_drills(Drill(base, text, reference), arguments.kills)
        for name, drill in drills + island_drills(IslandDrill(base, text)):
            if arguments.only not in name:
                continue
            if os.geteuid() != 0 and name.startswith(NEED_ROOT):
                print(f"left out, needs root: {name}")
                continue
            results.append((name, _tried(drill)))
            problems = results[-1][1].problems
            print(f"LOST: {name}: {'; '.join(problems)}" if problems else f"survived: {name}", flush=True)
    _print(results)
    _write(results, Path(arguments.out))
    return int(any(outcome.problems for _, outcome in results))


def _tried(drill) -> Outcome:
    try:
        return drill()
    except (AssertionError, OSError, ValueError) as error:
        return Outcome("the drill broke", -1, 0, [str(error)])


def _print(results: list[tuple[str, Outcome]]) -> None:
    table = Table(title="Fault drills", title_justify="left")
    for column in ("drill", "how it ended", "steps lost", "resumed to the same loss and bytes"):
        table.add_column(column, overflow="fold")
    for name, outcome in results:
        table.add_row(
            name, outcome.ended, str(outcome.steps_lost), "; ".join(outcome.problems)[:400] or "yes"
        )
    Console(width=150).print(table)
    print(" ".join(f"{name} {value}" for name, value in totals(results).items()))


def totals(results: list[tuple[str, Outcome]]) -> dict[str, int]:
    """A run has lost data if it could not go on to what the uninterrupted one reached."""
    lost = sum(bool(outcome.problems) for _, outcome in results)
    steps = sum(outcome.steps_lost for _, outcome in results)
    return {"drills": len(results), "survived": len(results) - lost, "steps_lost": steps, "data_lost": lost}


def _write(results: list[tuple[str, Outcome]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"drill": name, **asdict(outcome)} for name, outcome in results]
    path.write_text(json.dumps({"totals": totals(results), "drills": rows}, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    raise SystemExit(main())
