"""Where metrics go: metrics.jsonl always, Weights & Biases if chosen. Used on the first rank only."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from conf.schema import TrackerConfig


class Tracker(Protocol):
    def log(self, record: Mapping[str, Any]) -> None:
        """Keep one flat record of numbers; ``step`` and ``tokens`` are always among them."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish, with the run's final figures (empty if it failed)."""


class JsonLines:
    """One JSON object a line, flushed at once: a killed run keeps what it had.

    Lines of steps after ``done``, which a resumed run does again, are dropped first; None: all stay.
    """

    def __init__(self, path: Path, done: int | None) -> None:
        if path.is_file() and done is not None:
            _drop_lines_after(path, done)
        self._file = path.open("a", encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        self._file.close()


class Wandb:
    """Weights & Biases with trained tokens as the x axis, so that runs of different batch size compare."""

    def __init__(self, c: TrackerConfig, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            # The same run when resumed; wandb takes no step twice.
            id=_run_id(folder),
            resume="allow",
            project=c.project,
            name=folder.name,
            group=c.group,
            tags=list(c.tags),
            dir=str(folder),
            mode="offline" if c.mode == "offline" else "online",
            config=dict(settings),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, record: Mapping[str, Any]) -> None:
        values = {key: value for key, value in record.items() if value is not None}
        # What is measured after the run cannot have an earlier step than the last that wandb knows.
        self._run.log(values, step=max(record["step"], self._run.step))

    def close(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


def open_trackers(
    c: TrackerConfig, folder: Path, settings: Mapping[str, Any], done: int | None
) -> list[Tracker]:
    """The trackers of a run that starts after step ``done``; ``settings`` is its whole configuration.

    ``done`` None: nothing is trained, and all that was logged stays.
    """
    trackers: list[Tracker] = [JsonLines(folder / "metrics.jsonl", done)]
    if c.kind == "wandb":
        trackers.append(Wandb(c, folder, settings))
    return trackers


def _drop_lines_after(path: Path, done: int) -> None:
    """Keep whole lines of steps up to ``done``; the last line of a killed run may be torn."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= done:
                kept.append(line)
        except ValueError:
            continue
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(kept), encoding="utf-8")
    aside.rename(path)


def _run_id(folder: Path) -> str:
    path = folder / "wandb_id"
    if not path.is_file():
        path.write_text(secrets.token_hex(4))
    return path.read_text()
