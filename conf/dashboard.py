"""The settings of `caat dashboard`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.field import setting


@dataclass
class DashboardConfig:
    """`caat dashboard`: create a Weights & Biases workspace for the runs of a project.

    Needs the extra "dashboard" and `wandb login`; dry_run=true needs neither."""

    project: str = setting("caat", "Project in Weights & Biases, as in tracker.project.")
    entity: str | None = setting(
        None,
        "Team or user that owns the project. Default: your account's default.",
    )
    name: str = setting(
        "caat: loss against communication",
        "Name of the dashboard. A new name creates a new dashboard.",
    )
    dry_run: bool = setting(False, "Show what would be created, without using the network.")
    out: str | None = setting(None, "Path of the JSON with the description. Default: outputs/dashboard.json.")
