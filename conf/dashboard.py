"""The settings of `caat dashboard`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.field import setting


@dataclass
class DashboardConfig:
    """`caat dashboard`: a Weights & Biases workspace for the runs of a project, made from code.

    Needs the extra "dashboard" and `wandb login`; dry_run=true needs neither."""

    project: str = setting("caat", "Project in Weights & Biases, as in tracker.project.")
    entity: str | None = setting(
        None,
        "Team or user that the project belongs to. Default: the account's own.",
    )
    name: str = setting(
        "caat: loss against communication",
        "Name of the dashboard. Another name makes another dashboard.",
    )
    dry_run: bool = setting(False, "Show what would be made, and contact nobody.")
    out: str | None = setting(None, "Path of the JSON with the description. Default: outputs/dashboard.json.")
