"""The name of a codec, ``topk:0.01,index=bitmap,values=int8``, read and checked. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from conf.checks import require

# Numbers that share a scale. Slices of a message are whole blocks.
BLOCK = 256
DENSE = ("none", "bfloat16", "int8", "int4", "sign", "tern", "natural")
# With a number: the rule, in words and as a check.
NUMBERED: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "qsgd": ("a whole number of levels from 1 to 127", lambda x: x.is_integer() and 1 <= x <= 127),
    "powersgd": ("a whole rank of 1 or more", lambda x: x.is_integer() and x >= 1),
    "topk": ("a share above 0 and at most 1", lambda x: 0 < x <= 1),
    "randomk": ("a share above 0 and at most 1", lambda x: 0 < x <= 1),
    "threshold": ("a magnitude from 0 to 3e38", lambda x: 0 <= x <= 3e38),
}
SPARSE = ("topk", "randomk", "threshold")
INDICES = ("raw", "bitmap", "huffman")
VALUES = ("float32", "int8", "poly")


@dataclass(frozen=True)
class CodecSpec:
    """A codec by its parts. ``index`` is None if it was not given."""

    kind: str
    number: float = 0.0
    index: str | None = None
    # The share of false positives of a Bloom filter, if ``index`` is bloom.
    rate: float = 0.0
    values: str = "float32"


def parse_codec(spec: str) -> CodecSpec:
    """Read ``spec``. Raises ``ValueError`` for an unknown name, number or option."""
    name, *options = spec.split(",")
    kind, colon, number = name.partition(":")
    known = [*DENSE, *(f"{each}:NUMBER" for each in NUMBERED)]
    require(kind in DENSE or kind in NUMBERED, f"codec {spec} is not known: choose from {', '.join(known)}")
    require(kind in NUMBERED or not colon, f"codec {spec}: {kind} takes no number, leave :{number} out")
    require(
        kind in SPARSE or not options,
        f"codec {spec}: {kind} sends all numbers, so leave {','.join(options)} out",
    )
    value = _number(spec, kind, number) if kind in NUMBERED else 0.0
    given = _options(spec, options)
    index, rate = _index(spec, given["index"]) if "index" in given else (None, 0.0)
    return CodecSpec(kind, value, index, rate, given.get("values", "float32"))


def _number(spec: str, kind: str, text: str) -> float:
    rule, right = NUMBERED[kind]
    value = _plain(text)
    require(
        math.isfinite(value) and right(value),
        f"codec {spec}: {kind}:{text} must be {rule}, as in {kind}:1",
    )
    return value


def _plain(text: str) -> float:
    """Return the number; nan for what `float` would also take, such as white space, 1_0 or other digits."""
    is_plain = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE)
    return float(text) if is_plain else math.nan


def _options(spec: str, options: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        require(
            key in ("index", "values"),
            f"codec {spec}: {option} is not an option: give index=... or values=...",
        )
        require(key not in given, f"codec {spec}: {key} is given twice")
        require(
            key != "values" or value in VALUES,
            f"codec {spec}: values={value} is not known: choose from {', '.join(VALUES)}",
        )
        given[key] = value
    return given


def _index(spec: str, text: str) -> tuple[str, float]:
    kind, _, number = text.partition(":")
    if kind != "bloom":
        require(
            text in INDICES,
            f"codec {spec}: index={text} is not known: choose from {', '.join(INDICES)}, bloom:E",
        )
        return text, 0.0
    rate = _plain(number)
    require(
        1e-9 <= rate < 1,
        f"codec {spec}: index={text} needs a share of false positives from 1e-9 to 1, as in bloom:0.01",
    )
    return kind, rate
