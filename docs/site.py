"""What MkDocs cannot know: pages made from the code, and links out of `docs/`. A hook of mkdocs.yml."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from conf import bench
from conf.schema import Config
from launch.config import defaults
from launch.explain import GROUPS
from launch.settings import Setting

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
    **{
        f"caat bench {verb}": schema
        for name, schema in sorted(vars(bench).items())
        if (match := re.fullmatch("Bench(.+)Config", name))
        if find_spec(f"launch.bench.{(verb := match[1].lower())}")
    },
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the code."""
    files.append(File.generated(config, "settings.md", content=settings_page()))
    files.append(File.generated(config, "files.md", content=files_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to a file of the code is the file's name: the site does not hold it."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", lambda match: f"`{match[2]}`", markdown)


GIVEN = """From the schemas and groups in `conf/`. Given as `setting=value`. A model, an experiment and
any other option by name brings values of its own; the defaults are those without one."""


def settings_page() -> str:
    lines = ["# Settings", "", GIVEN]
    groups = "; ".join(f"`{group}=` {', '.join(options)}" for group, options in GROUPS.items())
    for title, schema in SCHEMAS.items():
        settings = list(defaults(schema).values())
        lines += ["", f"## {title}", ""]
        if schema is Config:
            lines += [f"Many at once, by name: {groups}.", ""]
        described = any(setting.description for setting in settings)
        head = ["setting", "default", *([""] if described else [])]
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [_row(setting, described) for setting in settings]
    return "\n".join(lines) + "\n"


def _row(setting: Setting, described: bool) -> str:
    cells = [f"`{setting.name}`", f"`{setting.shown}`" if setting.shown else ""]
    if described:
        cells.append(setting.description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def files_page() -> str:
    """Every Python file of the tree with the first line of its docstring."""
    lines = ["# Files", "", "Every file and what it is for, as its first line says."]
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
