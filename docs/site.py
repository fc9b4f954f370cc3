"""MkDocs hooks (see mkdocs.yml): pages generated from the code, and links to files outside `docs/`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from subprocess import run
from typing import TYPE_CHECKING, Any

from caat import __version__
from conf import bench
from conf.budget import BudgetConfig
from conf.lighthouse import LighthouseConfig
from conf.reading.options import GROUPS
from conf.reading.settings import Setting
from conf.reading.verb import defaults
from conf.schema import Config
from launch.bench import BENCHMARKS

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
PACKAGES = ("launch", "conf", "layers", "caat", "eval", "slurm", "tests")
SCHEMAS = {
    "caat pretrain": Config,
    **{
        f"caat {verb}": getattr(import_module(f"conf.{verb}"), f"{verb.capitalize()}Config")
        for verb in (
            "tokenize",
            "score",
            "generate",
            "evaluate",
            "convert",
            "report",
            "plan",
            "doctor",
            "dashboard",
        )
    },
    "caat plan budget": BudgetConfig,
    # conf.islands has the settings of training.
    "caat islands": LighthouseConfig,
    **{
        f"caat bench {what}": getattr(bench, f"Bench{what.capitalize()}Config") for what in sorted(BENCHMARKS)
    },
}


def on_config(config: Any) -> Any:
    """Add the version to the name, and a link to the repository that this clone comes from."""
    config.site_name = f"{config.site_name} {__version__}"
    if repository := web_address(_origin()):
        config.repo_url, config.repo_name = repository, repository.split("/", 3)[3]
    return config


def _origin() -> str:
    try:
        found = run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def web_address(origin: str) -> str | None:
    """Return the web address of a git remote; None without a remote or for one that is not on a host."""
    match = re.fullmatch(
        r"(?:https?://|ssh://|git@)(?:[^@/]*@)?([^/:]+)(?::\d+)?[/:](.+?)(?:\.git)?/?", origin
    )
    return f"https://{match[1]}/{match[2]}" if match else None


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are generated from the code."""
    # Imported here because the tests use the rest of this file without MkDocs.
    from mkdocs.structure.files import File

    files.append(File.generated(config, "settings.md", content=settings_page()))
    files.append(File.generated(config, "files.md", content=files_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links to source files, which the site does not contain, by the names of the files."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", lambda match: f"`{match[2]}`", markdown)


GIVEN = """All settings, from the schemas and groups in `conf/`. Give them as `setting=value`. A model, an
experiment or another named option changes some values; the defaults below are those without one."""


def settings_page() -> str:
    lines = ["# Settings", "", GIVEN]
    groups = "; ".join(f"`{group}=` {', '.join(options)}" for group, options in GROUPS.items())
    for title, schema in SCHEMAS.items():
        lines += ["", f"## {title}", ""]
        if schema is Config:
            lines += [f"Named options set several values at once: {groups}.", ""]
        lines += ['<div class="settings" markdown>', "", "| setting | default | |", "|---|---|---|"]
        lines += [*map(_row, defaults(schema).values()), "", "</div>"]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    cells = [f"`{setting.name}`", f"`{setting.shown}`" if setting.shown else "", setting.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def files_page() -> str:
    """Return the page that lists every Python file with the first line of its docstring."""
    lines = ["# Files", "", "Every source file with its purpose, from the first line of the file."]
    for package in PACKAGES:
        for folder, rows in _folders(ROOT / package):
            lines += ["", f"## {folder.relative_to(ROOT)}/", "", "| file | |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _folders(top: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder in sorted({top, *(path.parent for path in top.rglob("*.py"))}):
        lines = {path.name: _first_line(path) for path in sorted(folder.iterdir())}
        if rows := [f"| `{name}` | {line} |" for name, line in lines.items() if line]:
            yield folder, rows


def _first_line(path: Path) -> str:
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    if path.suffix in (".sh", ".sbatch"):
        lines = path.read_text(encoding="utf-8").splitlines()
        return next((line[2:] for line in lines if line.startswith("# ")), "")
    return ""
