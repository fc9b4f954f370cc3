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
from conf.codec import CodecSpec, parse_codec

# Each takes the number of the codec, and the counter of its random draws.
DENSE: Mapping[str, Callable[[float, Counter], Codec]] = {
    "none": lambda *_: Plain(),
    "bfloat16": lambda *_: BFloat16(),
    "int8": lambda *_: Integers(8),
    "int4": lambda *_: Integers(4),
    "sign": lambda *_: Sign(),
    "tern": lambda _, counter: Stochastic(1, math.inf, counter),
    "natural": lambda _, counter: Natural(counter),
    "qsgd": lambda levels, counter: Stochastic(int(levels), 2.0, counter),
    "powersgd": lambda rank, counter: PowerSGD(int(rank), counter),
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
    counter = Counter(seed)
    codec = _build(parse_codec(spec), counter)
    codec.counter = counter
    return codec


def _build(parsed: CodecSpec, counter: Counter) -> Codec:
    if parsed.kind in DENSE:
        return DENSE[parsed.kind](parsed.number, counter)
    values = VALUES[parsed.values]()
    if parsed.kind == "randomk" and parsed.index is None:
        return Shared(RandomK(parsed.number, counter), values)
    return Sparse(SPARSE[parsed.kind](parsed.number, counter), _index(parsed), values)


def _index(parsed: CodecSpec) -> IndexCodec:
    if parsed.index == "bloom":
        return Bloom(parsed.rate)
    return INDICES[parsed.index or "raw"]()
