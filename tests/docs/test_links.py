"""What the documentation points to is there: files, verbs and settings."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

import pytest

from conf.budget import BudgetConfig
from conf.reading.settings import settings_of
from conf.reading.verb import load_verb
from launch.bench import BENCHMARKS
from launch.run.compose import compose

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# As the site documents them, by "caat <verb>" or "caat bench <what>".
SITE = run_path(str(ROOT / "docs" / "site.py"))
SCHEMAS = SITE["SCHEMAS"]
INDENTED = re.compile(r"^    (caat .*)$", re.MULTILINE)
COMMAND = re.compile(r"^(?:caat |.* -m launch\.)(\w+) ?(.*)$")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(verb, arguments) of every caat command in code."""
    text = page.read_text(encoding="utf-8")
    blocks = [*FENCED.findall(text), *INDENTED.findall(text)]
    found = [COMMAND.match(line) for block in blocks for line in block.splitlines()]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


def test_every_setting_of_every_verb_is_described():
    assert {title.removeprefix("caat bench ") for title in SCHEMAS if "bench" in title} == set(BENCHMARKS)
    missing = [
        f"{title}: {setting.name}"
        for title, schema in SCHEMAS.items()
        for setting in settings_of(schema).values()
        if not setting.description
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("https://github.com/owner/caat.git", "https://github.com/owner/caat"),
        ("https://user:token@example.org/owner/caat", "https://example.org/owner/caat"),
        ("git@github.com:owner/caat.git", "https://github.com/owner/caat"),
        ("ssh://git@example.org:2222/group/sub/caat.git", "https://example.org/group/sub/caat"),
        ("/srv/git/caat", None),
        ("", None),
    ],
)
def test_the_site_links_to_the_repository_that_was_cloned(origin, address):
    assert SITE["web_address"](origin) == address


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files(page):
    links = [link.split("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
    assert [link for link in links if link and "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"], ids=name)
def test_files_that_the_tour_names_exist(page):
    named = set(re.findall(r"`([\w.-]+/[\w./-]*)`", page.read_text(encoding="utf-8")))
    assert len(named) > 3
    # NAME and VERB stand for something new. The first codec creates its folder.
    existing = [path for path in named if not re.search("NAME|VERB|build/", path)]
    folders = (ROOT, ROOT / "caat", ROOT / "eval", ROOT / "layers", ROOT / "launch", ROOT / "conf")
    folders += (ROOT / "caat" / "training", ROOT / "caat" / "parallel")
    assert [path for path in existing if not any((folder / path).exists() for folder in folders)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_verbs_exist(page):
    assert [verb for verb, _ in commands(page) if find_spec(f"launch.{verb}") is None] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_exist(page):
    for verb, arguments in commands(page):
        if verb == "pretrain" and "-m" not in arguments:
            # Checkpoints and files of settings that a page speaks of are not there to be read.
            absent = ("initialize=", "config=", "mine.yaml")
            compose([text for text in arguments if not text.startswith(absent)])
        elif verb == "plan" and arguments[0].startswith("budget"):
            load_verb(BudgetConfig, [text for text in arguments if "=" in text])
        elif verb == "bench":
            load_verb(SCHEMAS[f"caat bench {arguments[0]}"], arguments[1:])
        elif f"caat {verb}" in SCHEMAS and verb not in ("pretrain", "plan"):
            # Folders are arguments of `caat report`.
            load_verb(SCHEMAS[f"caat {verb}"], [text for text in arguments if "=" in text])


def test_commands_are_found():
    assert {"pretrain"} <= {verb for verb, _ in commands(ROOT / "README.md")}
