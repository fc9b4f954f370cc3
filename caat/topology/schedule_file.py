"""Schedules in JSON files: {"nodes": n, "links": [[from, to], ...], "chunks": c, "steps": [...]}.

A step is [step, from, to, chunk, "reduce" or "copy"]. Keys that other tools add are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caat.storage.durable import write_bytes
from caat.storage.records import Size, Whole, read_record
from caat.topology.check import check_schedule
from caat.topology.graph import check_count
from caat.topology.schedule import Move, Schedule
from conf.checks import require


@dataclass(frozen=True)
class _File:
    nodes: Size
    links: list[tuple[Whole, Whole]]
    chunks: Size
    steps: list[tuple[Whole, Whole, Whole, Whole, Literal["reduce", "copy"]]]


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Write the schedule as JSON, with one step in a line."""
    steps = [[*move[:4], "reduce" if move.reduce else "copy"] for move in schedule.moves]
    lines = ",\n".join(map(json.dumps, steps))
    head = json.dumps({"nodes": schedule.nodes, "links": schedule.links, "chunks": schedule.chunks})
    write_bytes(path, f'{head[:-1]}, "steps": [\n{lines}\n]}}\n'.encode())


def read_schedule(path: Path, collective: str = "all-reduce") -> Schedule:
    """Return the schedule in the JSON file ``path``.

    Raises ``ValueError``, in one line that names the file, unless it is a correct ``collective``.
    """
    content = read_record(path, _File)
    check_count(str(path), content.nodes)
    moves = [Move(*step[:4], step[4] == "reduce") for step in content.steps]
    links = set(content.links)
    for move in moves:
        require(
            (move.source, move.target) in links,
            f"{path} step {move.step} uses a link from {move.source} to {move.target}, which is not one "
            "of its links",
        )
    schedule = Schedule.of(content.nodes, content.chunks, moves)
    check_schedule(schedule, collective, str(path))
    return schedule
