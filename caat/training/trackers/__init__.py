"""Trackers of metrics: always metrics.jsonl, and optionally Weights & Biases and TensorBoard."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from caat.training.trackers.jsonl import JsonLines
from caat.training.trackers.tensorboard import TensorBoard
from caat.training.trackers.tracker import Guarded, Tracker
from caat.training.trackers.wandb_run import Wandb
from conf.schema import Config

__all__ = ["JsonLines", "Tracker", "open_trackers"]


def open_trackers(
    config: Config, folder: Path, done: tuple[int, int] | None, *, first: bool = False
) -> list[Tracker]:
    """Open the trackers of a run that starts after ``done`` (steps, tokens). Their errors cannot stop it.

    ``done`` None: nothing will be trained, and all existing records are kept. ``first``: the run has no
    checkpoint of its own yet.
    """
    done_steps, done_tokens = done or (None, None)
    settings, c = dataclasses.asdict(config), config.tracker
    trackers: list[Tracker] = [
        Guarded(
            str(folder / "metrics.jsonl"),
            lambda: JsonLines(folder / "metrics.jsonl", done_steps, first=first),
        )
    ]
    if c.wandb != "none":
        trackers.append(Guarded("Weights & Biases", lambda: Wandb(config, folder, settings)))
    if c.tensorboard:
        text = json.dumps(settings, indent=2)
        trackers.append(Guarded("TensorBoard", lambda: TensorBoard(folder, text, done_tokens)))
    return trackers
