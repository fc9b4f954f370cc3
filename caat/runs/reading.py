"""Read run directories: their settings, their metrics and their status."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import mean, median
from typing import Any

from caat.parallel.ring import ring_bytes
from caat.runs.status import Status
from caat.storage.records import Finite, Positive, Size, Whole, parse_record, read_record
from caat.storage.walk import walk
from conf.partition import shared_channels
from conf.reading.saved import read_config
from conf.schema import Config

# Number of first steps left out of medians: they warm up caches.
WARM_UP = 2
# Prefix of benchmark scores in the metrics: eval/<task>/<metric>.
SCORE = "eval/"
# Prefixes of other figures whose names follow the run; null means not finite.
NUMBERS = ("validation_loss/", "test_loss/", "epochs/", "tensor_parallel_", "data_parallel_", "islands_")


@dataclass(frozen=True)
class Run:
    """One run directory.

    ``records`` are the lines of metrics.jsonl that training wrote, by step. ``scores`` are the latest
    benchmark scores by (task, metric); for a finished run, only those of its last step.
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
    def diverged(self) -> bool:
        """Whether the run has finished with a validation loss that is not finite."""
        return self.finished and self.validation_loss is None

    @property
    def validation_loss(self) -> float | None:
        """The last validation loss in nats per token; None if there is none or it was not finite."""
        return next((r["validation_loss"] for r in reversed(self.records) if "validation_loss" in r), None)

    @property
    def test_loss(self) -> float | None:
        """The loss of the test split after the last step; None if there is none."""
        return self.records[-1].get("test_loss") if self.records else None

    def by_source(self, figure: str) -> dict[str, float | None]:
        """Return the last ``figure`` of each source of a mixture, by name; none for one text."""
        return by_source(figure, next((r for r in reversed(self.records) if "validation_loss" in r), {}))

    @property
    def bytes_per_step(self) -> int | None:
        """Mean tensor-parallel bytes of a step that the first process passes to collectives, both ways."""
        if not self.records:
            return None
        return self._mean("tensor_parallel_bytes_")

    @property
    def data_bytes_per_step(self) -> int | None:
        """Mean bytes of a step that the first process sends to replicas; None for one replica."""
        return self._data_parallel("bytes")

    @property
    def data_calls_per_step(self) -> int | None:
        """Mean number of data-parallel messages in a step."""
        return self._data_parallel("calls")

    @property
    def island_bytes_per_step(self) -> int | None:
        """Mean bytes of a step that the first process sends to other islands; None without any."""
        return self._mean("islands_bytes_") or None

    @property
    def total_bytes_per_step(self) -> int | None:
        """Mean bytes of a step that the first process sends: to shards, replicas and other islands.

        Between shards, a ring of P processes sends 2 (P - 1) / P times the sizes of the messages. None if a
        step has such messages, but no number of processes, as in records of older runs.
        """
        sent = [_sent_to_shards(record) for record in self.records]
        known = [each for each in sent if each is not None]
        if not sent or len(known) < len(sent):
            return None
        return round(mean(known)) + (self.data_bytes_per_step or 0) + (self.island_bytes_per_step or 0)

    def _data_parallel(self, what: str) -> int | None:
        return self._mean(f"data_parallel_{what}_") or None

    def _mean(self, prefix: str) -> int:
        """Return the mean over the steps of the sum of all fields with this ``prefix``; 0 without steps."""
        sums = [_sum(record, prefix) for record in self.records]
        return round(mean(sums)) if sums else 0

    @property
    def synchronised(self) -> float:
        """Fraction of the channels inside the layers that was synchronised, averaged over the steps."""
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
        """Return the median of a field over the steady steps; None if it was not measured."""
        values = self.steady(field)
        return median(values) if values else None

    def steady(self, field: str) -> list[float]:
        """Return the measured values of a field, without the first steps."""
        return [r[field] for r in self.records[WARM_UP:] or self.records if r.get(field) is not None]


@dataclass(frozen=True)
class Problem:
    """A folder that looks like a run but cannot be read."""

    folder: Path
    reason: str


def require_folders(folders: Iterable[str]) -> None:
    """Raise ``ValueError`` unless all ``folders`` exist."""
    for name in folders:
        if not Path(name).expanduser().is_dir():
            raise ValueError(f"{name} is not a folder: give run folders, or folders that contain them")


def find_runs(folders: list[str]) -> tuple[list[Run], list[Problem]]:
    """Find every run in or below ``folders``, each path once, and those that cannot be read.

    Raises ``ValueError`` if one of ``folders`` does not exist or no run can be read.
    """
    places: dict[Path, None] = {}
    problems: list[Problem] = []
    require_folders(folders)
    for name in folders:
        top = Path(name).expanduser()
        places |= dict.fromkeys(_run_folders(top.resolve(), problems))
    runs = []
    for place in places:
        try:
            runs.append(_read(place))
        except ValueError as error:
            problems.append(Problem(place, str(error)))
    if not runs:
        reasons = "".join(f"; {problem.folder}: {problem.reason}" for problem in problems[:3])
        raise ValueError(
            f"there is no readable run in {', '.join(folders)}{reasons or ' (no config.yaml)'}: "
            "give folders that caat pretrain created"
        )
    return runs, problems


def settings(config: Config) -> dict[str, Any]:
    """Return every setting by its dotted name, as the user would give it."""
    found: dict[str, Any] = {}

    def flatten(values: Any, prefix: str) -> None:
        for key, value in vars(values).items():
            if dataclasses.is_dataclass(value):
                flatten(value, f"{prefix}{key}.")
            else:
                # A ratio schedule, {0: 0.5, 1000: 1}, and a mixture, {web: 0.7, code: 0.3}, are one setting.
                found[prefix + key] = value

    flatten(config, "")
    return found


def by_source(figure: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``figure`` of each source of a mixture in ``record``, by name; none for one text."""
    start = f"{figure}/"
    return {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}


def _run_folders(top: Path, problems: list[Problem]) -> Iterator[Path]:
    """Yield the folders of runs; add those that cannot be searched to ``problems``."""

    def failed(error: OSError) -> None:
        problems.append(Problem(Path(error.filename), f"cannot be searched ({error.strerror})"))

    for folder, below, files in walk(top, failed):
        if "config.yaml" in files:
            # Do not search inside a run: wandb keeps a config.yaml there too.
            below.clear()
            yield folder
        below.sort()


def _read(folder: Path) -> Run:
    """Read one run. Raise ``ValueError`` if its configuration or metrics cannot be parsed."""
    config = read_config(folder / "config.yaml")
    lines = _read_metrics(folder / "metrics.jsonl")
    # `caat evaluate` appends lines without a loss after training.
    records = [line for line in lines if "loss" in line]
    path = folder / "status.json"
    status = (read_record(path, Status) if path.exists() else Status()).status
    if status == "finished":
        # If a run ended before its last benchmarks, scores of an earlier step must not take their place.
        lines = [line for line in lines if records and line["step"] == records[-1]["step"]]
    return Run(folder, config, status, records, _scores(lines))


def _scores(lines: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Return the scores of the latest step that has any. If lines repeat a score, the last one counts."""
    last = max((line["step"] for line in lines if any(map(_is_score, line))), default=0)
    scores = {}
    for line in lines:
        for name in filter(_is_score, line if line["step"] == last else ()):
            task, metric = name.removeprefix(SCORE).rsplit("/", 1)
            scores[task, metric] = line[name]
    return scores


def _sum(record: Mapping[str, Any], prefix: str) -> int:
    return sum(number for name, number in record.items() if name.startswith(prefix))


def _sent_to_shards(record: Mapping[str, Any]) -> int | None:
    size = _sum(record, "tensor_parallel_bytes_")
    if size and "tensor_parallel_processes" not in record:
        return None
    return ring_bytes(size, record["tensor_parallel_processes"]) if size else 0


def _is_score(name: str) -> bool:
    return name.startswith(SCORE)


@dataclass(frozen=True)
class Line:
    """The fields that every line of metrics.jsonl holds."""

    step: Whole
    tokens: Whole


@dataclass(frozen=True)
class Record(Line):
    """The fields of a training line that reports use; null means not finite or not known."""

    step: Size
    loss: Finite | None
    step_seconds: Positive
    tokens_per_second: Positive
    tensor_parallel_bytes_forward: Whole
    tensor_parallel_bytes_backward: Whole
    # Not in the records of older runs.
    tensor_parallel_processes: Size = 1
    replicas: Size = 1
    data_parallel_calls_gradients: Whole = 0
    data_parallel_calls_weights: Whole = 0
    data_parallel_calls_loss: Whole = 0
    data_parallel_calls_control: Whole = 0
    data_parallel_bytes_gradients: Whole = 0
    data_parallel_bytes_weights: Whole = 0
    data_parallel_bytes_loss: Whole = 0
    data_parallel_bytes_control: Whole = 0
    # Only in runs with islands.
    islands_bytes_changes: Whole = 0
    islands_bytes_momentum: Whole = 0
    islands_bytes_loss: Whole = 0
    islands_bytes_norm: Whole = 0
    islands_wait_seconds: Finite = 0.0
    validation_loss: Finite | None = None
    test_loss: Finite | None = None
    mfu: Finite | None = None


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl in order; none if the run did not get that far.

    An incomplete last line, left by a run that was killed, is ignored.
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
        if not line.strip():
            continue
        name = f"metrics.jsonl, line {number},"
        try:
            record = parse_record(line, dict[str, Any], name)
            parse_record(line, Record if "loss" in record else Line, name)
        except ValueError:
            if number > len(whole):
                break
            raise
        for key, value in record.items():
            if not (_is_score(key) or key.startswith(NUMBERS)) or type(value) in (int, float):
                continue
            if value is not None or _is_score(key):
                raise ValueError(f"{name} has {key}={value!r:.60}, which must be a number")
        # A benchmark may give inf or nan, which has no mean over the seeds.
        records.append({k: v for k, v in record.items() if not (_is_score(k) and not isfinite(v))})
    return records
