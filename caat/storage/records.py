"""JSON that is read back, against a schema: what is damaged or foreign is one clear message.

A schema is a dataclass beside what it describes, checked strictly by pydantic: 2.0, "2" and true are no whole
numbers, and a key that is missing, too large or of another type is named with its value.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")
# Counts that may be 0; sizes of things that are there; numbers that arithmetic can go on with.
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Long values are cut in messages.
SHOWN = 60


def read_record(path: Path, schema: type[T]) -> T:
    """What the JSON file ``path`` holds, as a ``schema``.

    Raises ``ValueError`` naming the file and the first key that is not as ``schema`` has it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    return parse_record(content, schema, path)


def parse_record(content: bytes | str, schema: type[T], name: object) -> T:
    """As :func:`read_record`, for the ``content`` of something called ``name``."""
    try:
        return _adapter(schema).validate_json(content, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValueError(f"{name} {_problem(first)}") from None


@cache
def _adapter(schema: type) -> TypeAdapter:
    return TypeAdapter(schema)


def _problem(error: Any) -> str:
    """What is wrong, as the end of a sentence that begins with the file's name."""
    rule = error["msg"].removeprefix("Input should be ")
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "json_invalid":
        return f"is not JSON ({rule.removeprefix('Invalid JSON: ')})"
    if error["type"] == "missing":
        return f"has no {key}"
    value = json.dumps(error["input"], ensure_ascii=False)
    value = value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
    return f"has {key}={value}, which must be {rule}" if key else f"holds {value}, which must be {rule}"
