"""The order of the packages in docs/architecture.md: nothing is imported from above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The lowest first. What stands in one line knows nothing of the others in it.
ORDER = [
    ("conf",),
    ("caat.data", "caat.parallel", "caat.planning"),
    ("caat.training",),
    ("layers",),
    ("eval",),
    ("launch",),
]
LEVEL = {package: level for level, packages in enumerate(ORDER) for package in packages}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def package_of(module: str) -> str | None:
    return next((package for package in LEVEL if f"{module}.".startswith(f"{package}.")), None)


@pytest.mark.parametrize("package", LEVEL)
def test_no_package_imports_what_stands_above_or_beside_it(package):
    files = sorted((ROOT / package.replace(".", "/")).rglob("*.py"))
    assert files
    for path in files:
        for module in imported(path):
            other = package_of(module)
            assert other in (None, package) or LEVEL[other] < LEVEL[package], f"{path} imports {module}"


def test_every_package_has_its_place():
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"caat", "tests"}
    found |= {f"caat.{path.parent.name}" for path in ROOT.glob("caat/*/__init__.py")}
    assert found == set(LEVEL)
