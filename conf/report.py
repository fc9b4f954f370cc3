"""The settings of `caat report`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ReportConfig:
    """`caat report FOLDER...`: every run in or below the folders, as one HTML page, Markdown and JSON."""

    # The folder to write report.html, report.md and report.json to; default: the one that all runs lie in.
    out: str | None = None
    # The heading; default: the models and the number of runs.
    title: str | None = None
