"""What a schema offers: its settings by dotted name, with type, default and description."""

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
    """One value that a user may give; ``field`` is its place in the schema."""

    name: str
    field: str
    kind: Any
    default: Any
    description: str

    @property
    def types(self) -> tuple[Any, ...]:
        """The type, or those of a union."""
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
        """What a value has to be, in words."""
        kinds = [KINDS.get(kind) for kind in self.types]
        words = " or ".join(kind for kind in kinds if kind) or "such a value"
        optional = " or null" if type(None) in self.types else ""
        example = f", such as {self.name}={self.shown}" if self.default not in (None, "???") else ""
        return words + optional + example

    @property
    def shown(self) -> str:
        """The default as a user would type it."""
        return "required" if self.default == "???" else typed(self.default)

    def parse(self, text: str) -> Any:
        """The value of ``text``: as it stands for text (or null), else as YAML reads it."""
        if self.is_text:
            return None if text == "null" and type(None) in self.types else text
        self.check(text)
        try:
            return read_as_typed(text) if self.is_texts else read(text)
        except yaml.YAMLError:
            return text  # of the wrong type, as the schema will say

    def of_file(self, value: Any, text: Any) -> Any:
        """``value`` as YAML read it, or the ``text`` that was typed where text is wanted: name: 1.10."""
        if self.is_text and isinstance(value, bool | int | float):
            return text
        if self.is_texts and isinstance(value, list):
            return [each if isinstance(each, str) else its for each, its in zip(value, text, strict=True)]
        return value

    def check(self, text: str) -> None:
        """Raise ``ValueError`` for ``text`` that is no value of any setting but text itself."""
        if self.is_text:
            return
        require(
            re.search(r"\d{300}", text) is None,
            f"{self.name}={text[:20]}... has hundreds of digits: no such number can be computed with",
        )
        nested = re.sub(r"\s", "", text).startswith(("[[", "[{"))
        require(
            not nested or get_origin(self.types[0]) is not list,
            f"{text} is no value of {self.name}: it must be {self.rule}",
        )


def typed(value: Any) -> str:
    """``value`` as a user would type it."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{typed(each)}' for key, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def field_types(schema: type) -> dict[str, Any]:
    """Field names and types of a dataclass."""
    hints = get_type_hints(schema)
    return {field.name: hints[field.name] for field in fields(schema)}


def settings_of(schema: type, prefix: str = "") -> dict[str, Setting]:
    """Every setting of ``schema`` and the schemas in it, by dotted name."""
    found: dict[str, Setting] = {}
    kinds, described = field_types(schema), descriptions(schema)
    # What a schema takes from another comes after its own.
    own = inspect.get_annotations(schema)
    for field in sorted(fields(schema), key=lambda field: field.name not in own):
        place, kind = prefix + field.name, kinds[field.name]
        if is_dataclass(kind):
            found |= settings_of(kind, f"{place}.")  # type: ignore[arg-type]
            continue
        # A field cannot have the name of a keyword: from_ is the setting "from".
        name = place.removesuffix("_")
        found[name] = Setting(name, place, kind, default_of(field), described.get(field.name, ""))
    return found


def print_settings(schema: type, settings: Iterable[Setting], groups: Mapping[str, Sequence[str]]) -> None:
    """The help of a verb: the schema's docstring, then its settings with defaults and descriptions."""
    print(
        f"{inspect.cleandoc(schema.__doc__ or '')}\n\nsettings, given as setting=value, with their defaults:"
    )
    for name, options in groups.items():
        print(f"\n  {name}: one of {', '.join(options)}; a name for many settings at once")
    for setting in settings:
        print(f"\n  {setting.name}={setting.shown}")
        if setting.description:
            print(f"      {setting.description}")
