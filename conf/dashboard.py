"""The settings of `caat dashboard`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DashboardConfig:
    """`caat dashboard`: a Weights & Biases workspace for the runs of a project, made from code.

    Needs the extra "dashboard" and `wandb login`; dry_run=true needs neither."""

    # As in tracker.project.
    project: str = "caat"
    # The team or user that the project is of; default: the account's own.
    entity: str | None = None
    # Another name makes another dashboard.
    name: str = "caat: loss against communication"
    # Show what would be made, and ask for nothing.
    dry_run: bool = False
    # Where the description goes as JSON; default: outputs/dashboard.json.
    out: str | None = None
