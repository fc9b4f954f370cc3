"""The settings of `caat report`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.field import setting


@dataclass
class ReportConfig:
    """`caat report FOLDER...`: every run in or below the folders, as one HTML page, Markdown and JSON."""

    out: str | None = setting(
        None,
        "Folder for report.html, report.md and report.json. Default: the folder that all runs are in.",
    )
    title: str | None = setting(None, "Heading of the report. Default: the models and the number of runs.")
