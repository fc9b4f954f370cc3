"""Weights & Biases, with trained tokens as the x axis, to make runs of different batch sizes comparable."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caat.training.trackers.samples import Sample
from caat.training.trackers.tracker import Tracker
from conf.schema import Config

# Aggregation in the run's summary for metrics whose last value is not the one to compare.
SUMMARIES = {"validation_loss": "min", "tokens_per_second": "mean", "step_seconds": "mean", "mfu": "mean"}


class Wandb(Tracker):
    """One run, which is continued when training resumes; ``settings`` is its complete configuration."""

    def __init__(self, config: Config, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        c = config.tracker
        self._run = wandb.init(
            # The same id continues the run when training resumes; wandb does not accept a step twice.
            id=_run_id(folder),
            resume="allow",
            project=c.project,
            name=c.name or folder.name,
            group=c.group or default_group(config, folder),
            tags=[f"ratio-{config.sync.last_ratio:g}", f"N-{config.parallel.tensor}", *c.tags],
            dir=str(folder),
            mode="offline" if c.wandb == "offline" else "online",
            config=dict(settings),
        )
        self._run.define_metric("tokens", hidden=True)
        self._run.define_metric("*", step_metric="tokens")
        for name, summary in SUMMARIES.items():
            self._run.define_metric(name, step_metric="tokens", summary=summary)

    def log(self, record: Mapping[str, Any]) -> None:
        values = {key: value for key, value in record.items() if value is not None}
        # wandb rejects steps below its last one, which measurements after the run may have.
        self._run.log(values, step=max(record["step"], self._run.step))

    def samples(self, record: Mapping[str, Any], samples: Sequence[Sample]) -> None:
        import wandb

        table = wandb.Table(["tokens", "sample", "context", "continuation", "loss", "loss of each piece"])
        for number, sample in enumerate(samples):
            row = sample.context, sample.continuation, sample.loss, sample.spelled
            table.add_data(record["tokens"], number, *row)
        self._run.log({"validation_samples": table, "tokens": record["tokens"]}, step=self._run.step)

    def keep(self, kind: str, folder: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._run.id}", kind)
        artifact.add_dir(str(folder))
        self._run.log_artifact(artifact)

    def close(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


def default_group(config: Config, folder: Path) -> str:
    """Return the group of a run: the name of its sweep, or the name of its model."""
    sweep = folder.resolve().parent
    return sweep.name if sweep.parent.name == "sweeps" else config.model.name


def _run_id(folder: Path) -> str:
    path = folder / "wandb_id"
    if not path.is_file():
        path.write_text(secrets.token_hex(4))
    return path.read_text()
