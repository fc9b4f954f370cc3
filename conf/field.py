"""A setting is a field of a schema with a default and a description, which `--help` and the site print."""

from __future__ import annotations

from copy import copy
from dataclasses import MISSING, Field, field, fields
from typing import Any

DESCRIPTION = "description"


def setting(default: Any, description: str = "") -> Any:
    """A dataclass field with this ``default``, of which every object gets its own copy.

    A schema that only changes the default of an inherited setting leaves the ``description`` out.
    """
    metadata = {DESCRIPTION: description} if description else {}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(of: Field) -> Any:
    """The default of a field, which has one or a factory."""
    return of.default if of.default_factory is MISSING else of.default_factory()


def descriptions(schema: type) -> dict[str, str]:
    """Descriptions by name of field: the schema's own, else that of the schema it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(schema.__mro__):
        if "__dataclass_fields__" in vars(each):
            described = {of.name: of.metadata.get(DESCRIPTION, "") for of in fields(each)}
            found |= {name: text for name, text in described.items() if text}
    return found
