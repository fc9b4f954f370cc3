"""Quoting of text settings for Hydra: without quotes, it reads `run.dir=2024_01` as the number 202401."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from conf.reading.settings import Setting

QUOTES = ("'", '"')
# Separates values, but not the options of a codec: topk:0.01,index=bitmap.
COMMA = re.compile(",(?!index=|values=)")


def as_typed(text: str, settings: Mapping[str, Setting], parser: OverridesParser) -> str:
    """Return the override ``text``, its value in quotes if Hydra would otherwise change it.

    Only settings of type text or list of texts are quoted. A value that the user quoted or that refers to
    other settings (``${...}``) is left to Hydra. The values of a sweep, separated by commas, are quoted one
    by one.
    """
    given, _, value = text.partition("=")
    key = given.lstrip("+")
    if key == "hydra.sweep.dir" or key.startswith("hydra.launcher."):
        return f"{given}={_of_hydra(value)}"
    if key not in settings:
        return text
    setting = settings[key]
    setting.check(value)
    if not value or value.startswith(QUOTES) or "${" in value or (value == "null" and setting.is_text):
        return text
    if setting.is_text:
        written = ",".join(map(quoted, COMMA.split(value)))
        wanted: str | list[str] = value
    elif setting.is_texts and re.fullmatch(r"\[[^][{}'\"]*\]", value):
        wanted = [each.strip() for each in value[1:-1].split(",")] if value != "[]" else []
        written = f"[{','.join(map(quoted, wanted))}]"
    else:
        return text
    try:
        override = parser.parse_overrides([text])[0]
    except HydraException:
        return f"{given}={written}"
    found = override.value()
    several = isinstance(found, ChoiceSweep) and all(isinstance(each, str) for each in found.list)
    if several or found == wanted:
        return text
    return f"{given}={written}"


def _of_hydra(value: str) -> str:
    """Return a text of Hydra's own settings, in quotes if it would drop the "_" of a number or refuse "~"."""
    return quoted(value) if re.fullmatch(r"[-+]?\d[\d_.]*|~.*", value) and not value.isdecimal() else value


def quoted(value: str) -> str:
    """Return ``value`` in single quotes for Hydra. Backslashes need escaping only before a quote."""
    value = re.sub(r"(\\*)'", lambda match: 2 * match[1] + r"\'", value)
    return "'" + re.sub(r"\\+$", lambda match: 2 * match[0], value) + "'"
