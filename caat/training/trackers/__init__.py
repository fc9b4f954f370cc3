"""Where metrics go: metrics.jsonl always; Weights & Biases and TensorBoard if chosen."""

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


def open_trackers(config: Config, folder: Path, done: tuple[int, int] | None) -> list[Tracker]:
    """The trackers of a run that starts after ``done`` steps and tokens; none of them can stop it.

    None: nothing is trained, and all that was logged stays.
    """
    done_steps, done_tokens = done or (None, None)
    settings, c = dataclasses.asdict(config), config.tracker
    trackers: list[Tracker] = [
        Guarded(str(folder / "metrics.jsonl"), lambda: JsonLines(folder / "metrics.jsonl", done_steps))
    ]
    if c.wandb != "none":
        trackers.append(Guarded("Weights & Biases", lambda: Wandb(config, folder, settings)))
    if c.tensorboard:
        text = json.dumps(settings, indent=2)
        trackers.append(Guarded("TensorBoard", lambda: TensorBoard(folder, text, done_tokens)))
    return trackers
