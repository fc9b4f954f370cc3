"""The options of each group: the YAML files in ``conf`` and in the user's ``--config-dir``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import conf
from conf.checks import require
from conf.reading.as_typed import quoted

CONF = Path(str(conf.__file__)).parent
# Folders that are searched for options, in this order.
FOLDERS = [CONF]


def _names(group: Path) -> list[str]:
    return sorted(file.name.removesuffix(".yaml") for file in group.glob("*.yaml"))


# The names of the options by group.
GROUPS = {folder.name: _names(folder) for folder in sorted(CONF.iterdir()) if any(folder.glob("*.yaml"))}


@contextmanager
def options_in(folder: str | None) -> Iterator[None]:
    """Add the options in ``folder``, if given, within the context: ``folder/model/mine.yaml`` is model=mine.

    Raise ``ValueError`` if it is not a folder.
    """
    if folder is None:
        yield
        return
    path = Path(folder).expanduser().absolute()
    require(path.is_dir(), f"--config-dir {folder} is not a folder: give one that contains model/NAME.yaml")
    before = dict(GROUPS)
    FOLDERS.append(path)
    GROUPS.update({group: sorted({*names, *_names(path / group)}) for group, names in before.items()})
    try:
        yield
    finally:
        FOLDERS.remove(path)
        GROUPS.update(before)


def option_file(group: str, name: str) -> Path | None:
    """Return the file of an option, or None for an option that only Hydra has."""
    paths = (folder / group / f"{name}.yaml" for folder in FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def take_config_dir(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the folder of ``--config-dir FOLDER``, if given, and the rest of ``argv``."""
    rest = list(argv)
    for at, text in enumerate(argv):
        flag, equals, folder = text.partition("=")
        if flag in ("--config-dir", "-cd"):
            require(bool(folder or rest[at + 1 :]), f"{text} needs a folder: --config-dir FOLDER")
            words = rest[at : at + (1 if equals else 2)]
            del rest[at : at + len(words)]
            return folder or words[1], rest
    return None, rest


def search_path() -> list[str]:
    """Return the override that adds the user's folder to Hydra's search path, if there is one."""
    own = [quoted(f"file://{folder}") for folder in FOLDERS[1:]]
    return [f"hydra.searchpath=[{','.join(own)}]"] if own else []
