"""`caat report FOLDER...`: compares any set of runs in an HTML page, Markdown and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from conf.checks import check_path
from conf.reading.verb import load_verb
from conf.report import ReportConfig
from launch.command.results import replace_text, result_file

if TYPE_CHECKING:
    from launch.report.page import Contents

USAGE = "usage: caat report FOLDER... [setting=value ...]\n"


def main(argv: list[str]) -> None:
    """Read every run in or below the folders in ``argv`` and write the report.

    Raises ``ValueError`` if no folder is given or no run is found.
    """
    if "--help" in argv or "-h" in argv:
        print(USAGE)
        load_verb(ReportConfig, ["--help"])
    # A sweep's folder may have "=" in its name.
    folders = [text for text in argv if "=" not in text or os.path.exists(os.path.expanduser(text))]
    for folder in folders:
        check_path(folder, "folder")
    config = load_verb(ReportConfig, [text for text in argv if text not in folders])
    for text in folders:
        if text.startswith("-"):
            raise ValueError(f"{text} is not an option: give folders, and settings as key=value (see --help)")
    if not folders:
        raise ValueError("caat report needs folders: give run folders, or folders that hold them (outputs)")
    contents, written = write_report(folders, config.out, config.title)
    from launch.report.terminal import show

    show(contents)
    for path in written:
        print(path)


def write_report(
    folders: Sequence[str], out: str | None = None, title: str | None = None
) -> tuple[Contents, list[Path]]:
    """Write ``report.html``, ``report.md`` and ``report.json`` to ``out``; return contents and paths.

    ``out`` defaults to the only folder given, or to the folder that contains all of them. Raises the same
    ``ValueError`` as :func:`caat.runs.reading.find_runs`, and one if ``out`` is not writable.
    """
    from caat.runs.reading import require_folders

    require_folders(folders)
    place = Path(out).expanduser() if out else _common(folders)
    written = [result_file(place / name) for name in ("report.html", "report.md", "report.json")]
    # The tasks of a job array report on the same runs: whoever writes last must have read last.
    with FileLock(place / ".report.lock") if place.is_dir() else nullcontext():
        contents, texts = _contents(folders, title)
        for path, text in zip(written, texts, strict=True):
            replace_text(path, text)
    return contents, written


def _contents(folders: Sequence[str], title: str | None) -> tuple[Contents, tuple[str, str, str]]:
    """Return what the runs of ``folders`` show, and as the texts of the three files."""
    from caat.runs.reading import find_runs
    from caat.runs.statistics import scores, table
    from caat.runs.variants import compared, variants
    from launch.report.page import Contents, as_json, html, markdown
    from launch.report.pictures import pictures

    runs, problems = find_runs(list(folders))
    groups = variants(runs)
    rows = table(groups)
    same, differing = compared(runs)
    names = ", ".join(sorted({run.config.model.name for run in runs}))
    unfinished = [run for run in runs if not run.finished or run.diverged]
    title = title or f"{names}: {len(runs)} run{'s' if len(runs) > 1 else ''}"
    contents = Contents(title, rows, scores(groups), same, differing, unfinished, problems)

    page = html(contents, pictures(groups, rows) if rows else {})
    return contents, (page, markdown(contents), json.dumps(as_json(contents), indent=2) + "\n")


def _common(folders: Sequence[str]) -> Path:
    """Return the deepest folder that contains all ``folders`` or is one of them."""
    paths = [Path(folder).expanduser().resolve() for folder in folders]
    first = paths[0]
    return next(up for up in (first, *first.parents) if all(up in (p, *p.parents) for p in paths))
