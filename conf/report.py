"""The settings of `caat report`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.field import setting


@dataclass
class ReportConfig:
    """`caat report FOLDER...`: report all runs in or below the folders as HTML, Markdown and JSON."""

    out: str | None = setting(
        None,
        "Folder for report.html, report.md and report.json. Default: the folder that contains all runs.",
    )
    title: str | None = setting(None, "Heading of the report. Default: the models and the number of runs.")
