"""A setting is a dataclass field with a default and a description, which `--help` and the site print."""

from __future__ import annotations

from copy import copy
from dataclasses import MISSING, Field, field, fields
from typing import Any

DESCRIPTION = "description"


def setting(default: Any, description: str = "") -> Any:
    """Return a dataclass field. Every object gets its own copy of a list or dict ``default``.

    Leave ``description`` out to change only the default of an inherited setting.
    """
    metadata = {DESCRIPTION: description} if description else {}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(of: Field) -> Any:
    """Return the default of a field, from its factory if it has one."""
    return of.default if of.default_factory is MISSING else of.default_factory()


def descriptions(schema: type) -> dict[str, str]:
    """Return the descriptions by field name. A description left out is inherited."""
    found: dict[str, str] = {}
    for each in reversed(schema.__mro__):
        if "__dataclass_fields__" in vars(each):
            described = {of.name: of.metadata.get(DESCRIPTION, "") for of in fields(each)}
            found |= {name: text for name, text in described.items() if text}
    return found
