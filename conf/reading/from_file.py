"""Settings from YAML files: the config.yaml of the run that resume=auto continues, and config=FILE."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from conf.checks import require
from conf.reading.explain import SETTINGS, check_option, unknown
from conf.reading.options import GROUPS, option_file
from conf.reading.settings import typed
from conf.reading.yaml_values import read_file

# Settings not read from a file: a new run with the settings of another needs its own run folder.
NOT_TAKEN = ("run.dir", "resume")
# The values of a YAML key without a value.
EMPTY = (None, "")


@dataclass(frozen=True)
class FromFile:
    """The contents of the file ``path``: options by group, and values by setting.

    ``sets`` names these groups and settings, and the settings that the options set.
    """

    path: Path
    options: Mapping[str, str]
    settings: Mapping[str, Any]
    sets: Set[str]


def take_file(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return ``[config=FILE]``, also for FILE.yaml alone, or ``[]``; and the other ``overrides``.

    Raise ``ValueError`` for several files.
    """
    files, others = [], []
    for text in overrides:
        if text.startswith("config="):
            files.append(text)
        elif text.endswith((".yaml", ".yml")) and "=" not in text and not text.startswith("-"):
            files.append(f"config={text}")
        else:
            others.append(text)
    require(len(files) < 2, f"{' '.join(files)}: only one file of settings is allowed: give one config=FILE")
    return files, others


def settings_files(given: Sequence[str], parsed: Sequence[Override]) -> list[FromFile]:
    """Read the files of settings, of which later ones count more.

    These are the config.yaml of an existing run with resume=auto, then config=FILE if ``given``.
    """
    paths = []
    values = {each.key_or_group: each.value() for each in parsed}
    run = values.get("run.dir")
    if values.get("resume") == "auto" and isinstance(run, str):
        path = Path(os.path.expanduser(run)) / "config.yaml"
        paths += [path] if os.path.isfile(path) else []
    for text in given:
        path = Path(os.path.expanduser(text.removeprefix("config=")))
        paths.append(path / "config.yaml" if os.path.isdir(path) else path)
    return [read_settings(path) for path in paths]


def read_settings(path: Path) -> FromFile:
    """Read the settings in ``path``, all or some. Raise ``ValueError`` for an unknown setting."""
    values, as_typed = read_file(path) or {}, read_file(path, as_typed=True) or {}
    require(isinstance(values, dict), f"{path} has no settings: write `train:` and below it `steps: 100`")
    texts = dict(settings_in(as_typed, path))
    options, settings, by_option = {}, {}, set[str]()
    for name, value in settings_in(values, path):
        if name in GROUPS:
            for option in value if isinstance(value, list) else [value]:
                check_option(name, option, f"{path}: {name}: {option}")
                by_option |= _set_by_option(name, str(option))
            options[name] = typed(value)
        elif name not in NOT_TAKEN:
            settings[name] = SETTINGS[name].of_file(value, texts[name])
    return FromFile(path, options, settings, {*options, *settings, *by_option})


def settings_in(values: Mapping[str, Any], where: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings and groups with their values. Raise ``ValueError`` for a key that is neither."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        inside = name not in SETTINGS and any(each.startswith(f"{name}.") for each in SETTINGS)
        if inside and isinstance(value, dict):
            yield from settings_in(value, where, f"{name}.")
        elif name in SETTINGS or (name in GROUPS and value not in EMPTY):
            yield name, value
        elif value not in EMPTY or not (inside or name in GROUPS):
            unknown(name, f"{where}: {name}", [*SETTINGS, *GROUPS])


def set_by(parsed: Sequence[Override]) -> set[str]:
    """Return the settings and groups in the overrides, and the settings that their options set."""
    found: set[str] = set()
    for override in parsed:
        key, value = override.key_or_group, override.value()
        found.add(key)
        if key in GROUPS and isinstance(value, dict):
            found |= {name for name, _ in settings_in({key: value}, override.input_line)}
        elif key in GROUPS and value is not None:
            for option in value if isinstance(value, list) else [value]:
                found |= _set_by_option(key, str(option))
    return found


def _set_by_option(group: str, option: str) -> set[str]:
    path = option_file(group, option)
    if path is None:
        return set()
    values = read_file(path) or {}
    found: set[str] = set()
    for entry in values.pop("defaults", []):
        # Entries are "- override /model: tiny" or, for another option of this group, "- ablation".
        for key, other in entry.items() if isinstance(entry, dict) else [(group, entry)]:
            if other not in (None, "_self_"):
                found |= _set_by_option(key.removeprefix("override").strip(" /"), other)
    values.pop("hydra", None)
    whole = "@package _global_" in path.read_text(encoding="utf-8")
    return found | {name for name, _ in settings_in(values if whole else {group: values}, path)}
