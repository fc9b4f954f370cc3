"""The settings of a schema by dotted name, with type, default and description."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from conf.checks import require
from conf.field import default_of, descriptions
from conf.reading.yaml_values import read, read_as_typed

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[int]: "a list of whole numbers",
    list[float]: "a list of numbers",
    list[str]: "a list of texts",
}


@dataclass(frozen=True)
class Setting:
    """One setting. ``name`` is the name that users give, ``field`` the dotted path in the schema."""

    name: str
    field: str
    kind: Any
    default: Any
    description: str

    @property
    def types(self) -> tuple[Any, ...]:
        """Return the type, or the types of a union."""
        union = get_origin(self.kind) in (Union, types.UnionType)
        return get_args(self.kind) if union else (self.kind,)

    @property
    def is_text(self) -> bool:
        return set(self.types) - {type(None)} == {str}

    @property
    def is_texts(self) -> bool:
        return set(self.types) - {type(None)} == {list[str]}

    @property
    def rule(self) -> str:
        """Describe the allowed values, for error messages."""
        kinds = [KINDS.get(kind) for kind in self.types]
        words = " or ".join(kind for kind in kinds if kind) or "such a value"
        optional = " or null" if type(None) in self.types else ""
        example = f", such as {self.name}={self.shown}" if self.default not in (None, "???") else ""
        return words + optional + example

    @property
    def shown(self) -> str:
        """Return the default as a user would type it."""
        return "required" if self.default == "???" else typed(self.default)

    def parse(self, text: str) -> Any:
        """Return the value of ``text``: unchanged for a text setting (or null), else parsed as YAML."""
        if self.is_text:
            return None if text == "null" and type(None) in self.types else text
        self.check(text)
        if self.kind is Any and re.fullmatch(r"\{[^][{}'\"]*\}", text):
            # As Hydra reads it: without a space after the colon, YAML reads one text.
            entries = (each.partition(":") for each in text[1:-1].split(",") if each)
            return {name.strip(): read(value) for name, _, value in entries}
        try:
            return read_as_typed(text) if self.is_texts else read(text)
        except yaml.YAMLError:
            return text  # It has the wrong type, which the schema reports.

    def of_file(self, value: Any, text: Any) -> Any:
        """Return the parsed ``value``, or its source ``text`` for a text setting: `name: 1.10` is "1.10"."""
        if self.is_text and isinstance(value, bool | int | float):
            return text
        if self.is_texts and isinstance(value, list):
            return [
                each if isinstance(each, str) else source for each, source in zip(value, text, strict=True)
            ]
        return value

    def check(self, text: str) -> None:
        """Raise ``ValueError`` if ``text`` can only be the value of a text setting, and this is not one."""
        if self.is_text:
            return
        require(
            re.search(r"\d{300}", text) is None,
            f"{self.name}={text[:20]}... has hundreds of digits: give a shorter number",
        )
        nested = re.sub(r"\s", "", text).startswith(("[[", "[{"))
        require(
            not nested or get_origin(self.types[0]) is not list,
            f"{text} is not a value of {self.name}: it must be {self.rule}",
        )


def typed(value: Any) -> str:
    """Return ``value`` as a user would type it."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{typed(each)}' for key, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def field_types(schema: type) -> dict[str, Any]:
    """Return the field names and types of a dataclass."""
    hints = get_type_hints(schema)
    return {field.name: hints[field.name] for field in fields(schema)}


def settings_of(schema: type, prefix: str = "") -> dict[str, Setting]:
    """Return the settings of ``schema`` and its nested schemas by dotted name."""
    found: dict[str, Setting] = {}
    kinds, described = field_types(schema), descriptions(schema)
    # Inherited settings come after those of the schema.
    own = inspect.get_annotations(schema)
    for field in sorted(fields(schema), key=lambda field: field.name not in own):
        place, kind = prefix + field.name, kinds[field.name]
        if is_dataclass(kind):
            found |= settings_of(kind, f"{place}.")  # type: ignore[arg-type]
            continue
        # A field cannot be named like a keyword: the field from_ is the setting "from".
        name = place.removesuffix("_")
        found[name] = Setting(name, place, kind, default_of(field), described.get(field.name, ""))
    return found


def print_settings(schema: type, settings: Iterable[Setting], groups: Mapping[str, Sequence[str]]) -> None:
    """Print the help of a verb: the schema's docstring, then its settings with defaults and descriptions."""
    print(
        f"{inspect.cleandoc(schema.__doc__ or '')}\n\nsettings, given as setting=value, with their defaults:"
    )
    for name, options in groups.items():
        print(f"\n  {name}: one of {', '.join(options)}; a name for many settings at once")
    for setting in settings:
        print(f"\n  {setting.name}={setting.shown}")
        if setting.description:
            print(f"      {setting.description}")
