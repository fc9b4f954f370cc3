"""The layering in docs/architecture.md: no room imports from above, and there are no import cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("conf", "caat", "layers", "eval", "launch")
# From the lowest to the highest. Rooms on the same line do not import each other.
ORDER = [
    ("conf",),
    ("conf.reading", "caat"),
    ("caat.storage", "caat.compression"),
    ("caat.topology",),
    ("caat.data", "caat.parallel"),
    ("caat.parallel.partial", "caat.optim"),
    ("caat.planning",),
    ("caat.supervision",),
    ("caat.training",),
    ("caat.runs", "layers"),
    ("eval",),
    ("launch.command",),
    ("launch.report",),
    ("launch.run",),
    ("launch",),
]
# The command is in the package whose name it has, and stands above all.
COMMAND = "caat.__main__"
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# At most this share of the product's lines may be in launch, which holds the verbs and the life of a run.
LAUNCH = 0.3
LINES, POSITIONAL = 60, 5
# Hugging Face determines the signatures in this file, torch those of autograd functions.
FOREIGN = "modeling_caat.py"


def sources(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if module(path) != COMMAND)


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that ``path`` imports, at any level: an import in a function is a dependency too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{name.name}" for name in node.names)
            yield from (name if is_module(name) else str(node.module) for name in names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str | None:
    """Return the innermost room of a module; files directly in a package belong to the package."""
    rooms = (room for room in LEVEL if f"{name}.".startswith(f"{room}."))
    return max(rooms, key=len, default=None)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_what_stands_above_or_beside_it(package):
    wrong = [
        f"{module(path)} imports {name}"
        for path in sources(package)
        for name in imported(path)
        if (other := room_of(name)) not in (None, room := room_of(module(path)))
        and LEVEL[str(other)] >= LEVEL[str(room)]
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others():
    graph = {module(path): set(imported(path)) for package in PACKAGES for path in sources(package)}
    try:
        TopologicalSorter({name: found - {name} for name, found in graph.items()}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_every_folder_has_its_place():
    folders = {path.parent for package in PACKAGES for path in sources(package)}
    assert [folder for folder in folders if room_of(module(folder / "__init__.py")) is None] == []
    assert [room for room in LEVEL if not (ROOT / room.replace(".", "/")).is_dir()] == []


def test_launch_holds_less_than_a_third():
    lines = {
        package: sum(len(path.read_text().splitlines()) for path in sources(package)) for package in PACKAGES
    }
    assert lines["launch"] <= LAUNCH * sum(lines.values())


def test_functions_are_short_and_take_few_arguments_by_position():
    wrong = []
    for path in (path for package in PACKAGES for path in sources(package)):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
            several = len([name for name in names if name not in ("self", "cls")]) > POSITIONAL
            lines = node.end_lineno - node.lineno + 1 if node.end_lineno else 0
            if lines > LINES or (several and names[0] != "ctx" and path.name != FOREIGN):
                wrong.append(f"{module(path)}.{node.name}: {lines} lines, {len(names)} arguments")
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_deepspeed_is_imported_late(package):
    """It takes its device from the environment when it is imported, and caat sets that before it starts."""
    early = [
        module(path)
        for path in sources(package)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "deepspeed" in ast.unparse(node).split(".")[0]
    ]
    assert early == []
