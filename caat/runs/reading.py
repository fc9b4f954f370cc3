"""Run folders as they lie on disk: what was set, what was measured, how far each got."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from caat.runs.status import Status
from caat.storage.records import Finite, Positive, Whole, parse_record, read_record
from conf.partition import shared_channels
from conf.reading.saved import read_config
from conf.schema import Config

# The first steps warm caches up.
WARM_UP = 2
# What benchmarks are called in the metrics: eval/<task>/<metric>.
SCORE = "eval/"


@dataclass(frozen=True)
class Run:
    """One run folder.

    ``records`` are the lines of its metrics.jsonl that training wrote, by step; ``scores`` the last ones of
    its benchmarks, by (task, metric), of a finished run those of its last step.
    """

    folder: Path
    config: Config
    status: str
    records: list[dict[str, Any]]
    scores: dict[tuple[str, str], float]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def validation_loss(self) -> float | None:
        """The last one, nats per token; None if there is none or it was not finite."""
        return next((r["validation_loss"] for r in reversed(self.records) if "validation_loss" in r), None)

    @property
    def bytes_per_step(self) -> int | None:
        """Tensor-parallel bytes that the first process puts into collectives, both directions."""
        if not self.records:
            return None
        return sum(self.records[-1][f"tensor_parallel_bytes_{way}"] for way in ("forward", "backward"))

    @property
    def synchronised(self) -> float:
        """Share of the channels inside the layers that was synchronised, mean over the steps."""
        c = self.config
        channels = [
            shared_channels(c.model.hidden, c.sync.ratio_of(r["step"]), c.parallel.tensor)
            for r in self.records
        ]
        return mean(channels) / c.model.hidden if channels else c.sync.last_ratio

    @property
    def tokens(self) -> int:
        return self.records[-1]["tokens"] if self.records else 0

    def median(self, field: str) -> float | None:
        """Of a field of the records, without the first steps; None where it was not measured."""
        values = self.steady(field)
        return median(values) if values else None

    def steady(self, field: str) -> list[float]:
        """A field of the records, without the first steps, where it was measured."""
        return [r[field] for r in self.records[WARM_UP:] or self.records if r.get(field) is not None]


@dataclass(frozen=True)
class Problem:
    """A folder that looks like a run and cannot be read."""

    folder: Path
    reason: str


def find_runs(folders: list[str]) -> tuple[list[Run], list[Problem]]:
    """Every run in or below ``folders``, each once, by path; and those that cannot be read.

    Raises ``ValueError`` if one of ``folders`` is not there, or there is no run in all of them.
    """
    places: dict[Path, None] = {}
    for name in folders:
        top = Path(name).expanduser()
        if not top.is_dir():
            raise ValueError(f"{name} is not a folder: give run folders, or folders that they lie in")
        places |= dict.fromkeys(_run_folders(top.resolve()))
    runs, problems = [], []
    for place in places:
        try:
            runs.append(_read(place))
        except ValueError as error:
            problems.append(Problem(place, str(error)))
    if not runs:
        reasons = "".join(f"; {problem.folder}: {problem.reason}" for problem in problems[:3])
        raise ValueError(
            f"there is no run in {', '.join(folders)} that can be read{reasons or ' (no config.yaml)'}: "
            "give folders that caat pretrain made"
        )
    return runs, problems


def settings(config: Config) -> dict[str, Any]:
    """Every setting by dotted name, as the user would give it."""
    found: dict[str, Any] = {}

    def flatten(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            # A ratio that changes, {0: 0.5, 1000: 1}, is one setting.
            if isinstance(value, dict) and all(isinstance(name, str) for name in value):
                flatten(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value

    flatten(dataclasses.asdict(config), "")
    return found


def _run_folders(top: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(top):
        if "config.yaml" in files:
            # What lies deeper is the run's own; wandb keeps a config.yaml there too.
            below.clear()
            yield Path(folder)
        below.sort()


def _read(folder: Path) -> Run:
    """Raises ``ValueError`` if its configuration or metrics cannot be understood."""
    config = read_config(folder / "config.yaml")
    lines = _read_metrics(folder / "metrics.jsonl")
    # `caat evaluate` adds a line of its own after training.
    records = [line for line in lines if "loss" in line]
    path = folder / "status.json"
    status = (read_record(path, Status) if path.exists() else Status()).status
    if status == "finished":
        # One that ended before its last benchmarks is not to be compared by those of an earlier step.
        lines = [line for line in lines if records and line["step"] == records[-1]["step"]]
    return Run(folder, config, status, records, _scores(lines))


def _scores(lines: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Of the latest step that has any, whatever was evaluated after it; of several lines the last."""
    last = max((line["step"] for line in lines if any(map(_is_score, line))), default=0)
    scores = {}
    for line in lines:
        for name in filter(_is_score, line if line["step"] == last else ()):
            task, metric = name.removeprefix(SCORE).rsplit("/", 1)
            scores[task, metric] = line[name]
    return scores


def _is_score(name: str) -> bool:
    return name.startswith(SCORE)


@dataclass(frozen=True)
class Line:
    """What every line of metrics.jsonl holds."""

    step: Whole
    tokens: Whole


@dataclass(frozen=True)
class Record(Line):
    """What a report takes from a line that training wrote; null: not a finite number, or not known."""

    loss: Finite | None
    step_seconds: Positive
    tokens_per_second: Positive
    tensor_parallel_bytes_forward: Whole
    tensor_parallel_bytes_backward: Whole
    validation_loss: Finite | None = None
    mfu: Finite | None = None


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Its lines, by step; none if the run did not come that far.

    The last line of a killed run may be torn.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"metrics.jsonl cannot be read ({error.strerror})") from error
    *whole, torn = content.split(b"\n")
    lines = [*whole, torn] if torn else whole
    records = []
    for number, line in enumerate(lines, 1):
        name = f"metrics.jsonl, line {number},"
        try:
            record = parse_record(line, dict[str, Any], name)
            parse_record(line, Record if "loss" in record else Line, name)
        except ValueError:
            if number > len(whole):
                break
            raise
        if wrong := [key for key in filter(_is_score, record) if type(record[key]) not in (int, float)]:
            raise ValueError(f"{name} has {wrong[0]}={record[wrong[0]]!r:.60}, which must be a number")
        records.append(record)
    return records
