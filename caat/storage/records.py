"""Read JSON files against a schema, with one clear message if the content is damaged or does not fit.

A schema is a dataclass, defined next to what it describes. Pydantic checks it strictly: 2.0, "2" and true
are not integers, and the message names the first key that is missing, out of range or of the wrong type.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")
# Counts, sizes (at least 1), finite numbers, positive finite numbers.
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Longest value shown in a message, in characters.
SHOWN = 60


def read_record(path: Path, schema: type[T]) -> T:
    """Read the JSON file ``path`` as a ``schema``.

    Raises ``ValueError`` naming the file and the first key that does not fit ``schema``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    return parse_record(content, schema, path)


def parse_record(content: bytes | str, schema: type[T], name: object) -> T:
    """Like :func:`read_record`, for ``content`` that messages call ``name``."""
    try:
        return _adapter(schema).validate_json(content, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValueError(f"{name} {_problem(first)}") from None


@cache
def _adapter(schema: type) -> TypeAdapter:
    return TypeAdapter(schema)


def _problem(error: Any) -> str:
    """Describe the problem in words that continue a sentence starting with the file's name."""
    rule = error["msg"].removeprefix("Input should be ")
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "json_invalid":
        return f"is not JSON ({rule.removeprefix('Invalid JSON: ')})"
    if error["type"] == "missing":
        return f"has no {key}"
    value = json.dumps(error["input"], ensure_ascii=False)
    value = value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
    return f"has {key}={value}, which must be {rule}" if key else f"holds {value}, which must be {rule}"
