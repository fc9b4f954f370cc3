"""Settings of Weights & Biases and TensorBoard: `tracker.*`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_choice
from conf.field import setting


@dataclass
class TrackerConfig:
    """Trackers in addition to metrics.jsonl, always written. For both: tracker=[wandb,tensorboard]."""

    wandb: str = setting(
        "none",
        "Weights & Biases: none, online, or offline (upload later with `wandb sync`).",
    )
    tensorboard: bool = setting(False, "Write event files for TensorBoard to the run folder.")
    project: str = setting("caat", "Project in Weights & Biases.")
    name: str | None = setting(None, "Name of the run. Default: the name of its folder.")
    group: str | None = setting(
        None,
        "Group of the run. Default: its sweep, or its model if it is not part of a sweep.",
    )
    tags: list[str] = setting([], "Tags in addition to ratio-<sync.ratio> and N-<parallel.tensor>.")
    samples: int = setting(
        4,
        "Number of held-out sequences to show at each validation, with the loss of every token. 0: none.",
    )
    artifacts: bool = setting(
        False,
        "Upload the last checkpoint and the run's report to Weights & Biases at the end of the run.",
    )

    def __post_init__(self) -> None:
        require_choice("tracker.wandb", self.wandb, ("none", "online", "offline"))
        require(self.samples >= 0, f"tracker.samples={self.samples} must not be negative (0: none)")
        require(
            not self.artifacts or self.wandb != "none",
            "tracker.artifacts=true needs Weights & Biases: set tracker=wandb or tracker=wandb_offline",
        )
