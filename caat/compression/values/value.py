"""The interface of a codec of values, and those that use a dense codec."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from caat.compression.codec import Codec, Parts, Plain
from caat.compression.integers import Integers


class ValueCodec(ABC):
    """Encodes the values of ascending indices."""

    exact_size = True
    # Whether the sum of encoded values is the encoded sum.
    linear = False

    @abstractmethod
    def encode(self, values: Tensor) -> Parts: ...

    @abstractmethod
    def decode(self, parts: Parts, count: int) -> Tensor: ...

    @abstractmethod
    def size(self, count: int) -> int: ...


class Dense(ValueCodec):
    """``values=float32``, ``values=int8``: a dense codec on the values alone."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.linear = codec, isinstance(codec, Plain)

    def encode(self, values: Tensor) -> Parts:
        return self.codec.encode(values)

    def decode(self, parts: Parts, count: int) -> Tensor:
        return self.codec.decode(parts, count)

    def size(self, count: int) -> int:
        return self.codec.size(count)


def float32() -> Dense:
    return Dense(Plain())


def int8() -> Dense:
    return Dense(Integers(8))
