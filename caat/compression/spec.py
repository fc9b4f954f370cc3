"""From the name of a codec, ``topk:0.01,index=bitmap,values=int8``, to the codec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from caat.compression.codec import BFloat16, Codec, Plain
from caat.compression.indices.bloom import Bloom
from caat.compression.indices.gaps import Gaps
from caat.compression.indices.index import Bitmap, IndexCodec, Raw
from caat.compression.integers import Integers
from caat.compression.natural import Natural
from caat.compression.powersgd import PowerSGD
from caat.compression.randomness import Counter
from caat.compression.sign import Sign
from caat.compression.sparse import RandomK, Selector, Shared, Sparse, Threshold, TopK
from caat.compression.stochastic import Stochastic
from caat.compression.values.poly import Poly
from caat.compression.values.value import ValueCodec, float32, int8
from conf.checks import require

DENSE: Mapping[str, Callable[[Counter], Codec]] = {
    "none": lambda _: Plain(),
    "bfloat16": lambda _: BFloat16(),
    "int8": lambda _: Integers(8),
    "int4": lambda _: Integers(4),
    "sign": lambda _: Sign(),
    "tern": lambda counter: Stochastic(1, math.inf, counter),
    "natural": Natural,
}
# With a number: the rule, in words and as a check.
NUMBERED = {
    "qsgd": ("a whole number of levels from 1 to 127", lambda x: x.is_integer() and 1 <= x <= 127),
    "powersgd": ("a whole rank of 1 or more", lambda x: x.is_integer() and x >= 1),
    "topk": ("a share above 0 and at most 1", lambda x: 0 < x <= 1),
    "randomk": ("a share above 0 and at most 1", lambda x: 0 < x <= 1),
    "threshold": ("a magnitude of 0 or more", lambda x: x >= 0),
}
SPARSE: Mapping[str, Callable[[float, Counter], Selector]] = {
    "topk": lambda share, _: TopK(share),
    "threshold": lambda magnitude, _: Threshold(magnitude),
    "randomk": RandomK,
}
INDICES: Mapping[str, Callable[[], IndexCodec]] = {"raw": Raw, "bitmap": Bitmap, "huffman": Gaps}
VALUES: Mapping[str, Callable[[], ValueCodec]] = {"float32": float32, "int8": int8, "poly": Poly}


def make_codec(spec: str, seed: int = 0) -> Codec:
    """The codec called ``spec``; random numbers are those of ``seed``, a new draw for every message.

    Raises ``ValueError`` for an unknown name, number or option.
    """
    name, *options = spec.split(",")
    kind, colon, number = name.partition(":")
    known = [*DENSE, *(f"{each}:NUMBER" for each in NUMBERED)]
    require(kind in DENSE or kind in NUMBERED, f"codec {spec} is not known: choose from {', '.join(known)}")
    require(kind in NUMBERED or not colon, f"codec {spec}: {kind} takes no number, leave :{number} out")
    require(
        kind in SPARSE or not options,
        f"codec {spec}: {kind} sends all numbers, so leave {','.join(options)} out",
    )
    counter = Counter(seed)
    if kind in DENSE:
        return DENSE[kind](counter)
    value = _number(spec, kind, number)
    if kind == "qsgd":
        return Stochastic(int(value), 2.0, counter)
    if kind == "powersgd":
        return PowerSGD(int(value), counter)
    given = _options(spec, options)
    values = VALUES[given.get("values", "float32")]()
    if kind == "randomk" and "index" not in given:
        return Shared(RandomK(value, counter), values)
    return Sparse(SPARSE[kind](value, counter), _index(spec, given.get("index", "raw")), values)


def _number(spec: str, kind: str, text: str) -> float:
    rule, right = NUMBERED[kind]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    require(
        math.isfinite(value) and right(value),
        f"codec {spec}: {kind}:{text} must be {rule}, as in {kind}:1",
    )
    return value


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


def _index(spec: str, text: str) -> IndexCodec:
    kind, _, number = text.partition(":")
    if kind != "bloom":
        require(
            text in INDICES,
            f"codec {spec}: index={text} is not known: choose from {', '.join(INDICES)}, bloom:E",
        )
        return INDICES[text]()
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    require(
        0 < rate < 1,
        f"codec {spec}: index={text} needs a share of false positives between 0 and 1, as in bloom:0.01",
    )
    return Bloom(rate)
