"""Between the full tensors of a file and the shards of a process: which numbers are whose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

# Columns are joined in strips of rows of about this size, not as a second full matrix.
STRIP_BYTES = 16 * 2**20

# read(name, [rows, columns]) -> that part of the full tensor of this name.
ReadSlice = Callable[[str, tuple[slice, ...]], Tensor]


@dataclass(frozen=True)
class FullTensors:
    """The full tensors, by Hugging Face name, that the N ``shards`` of one parameter are cut from.

    Shard i stacks the i-th of N equal slices along ``dim`` of every tensor, each padded to its length in
    ``sizes`` first; ``dim`` None: not cut, every process holds the one tensor whole.
    """

    parameter: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    shards: int
    dim: int | None
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of all tensors in float32."""
        return 4 * sum(prod(shape) for shape in self.shapes)

    def local_shape(self, shards: int) -> tuple[int, ...]:
        """Of the parameter in a process that holds ``shards`` of the shards."""
        if self.dim is None:
            return self.shapes[0]
        shape = list(self.shapes[0])
        shape[self.dim] = sum(self.sizes) * shards // self.shards
        return tuple(shape)

    def strips(self, number: int, held: Sequence[Tensor]) -> Iterator[Tensor]:
        """Tensor ``number`` in consecutive strips of rows, from what the processes hold, by tensor rank."""
        shape = self.shapes[number]
        if self.dim is None:
            yield held[0]
            return
        slices = [
            process.narrow(self.dim, start, length)
            for process in held
            for start, length in self._places(number, self.shards // len(held))
        ]
        if self.dim == 0:
            left = shape[0]
            for part in slices:
                if left > 0:
                    yield part[:left]
                left -= len(part)
            return
        rows = max(1, STRIP_BYTES // (4 * shape[1]))
        for first in range(0, shape[0], rows):
            yield torch.cat([part[first : first + rows] for part in slices], dim=1)

    def read(self, which: range, read: ReadSlice, into: Tensor) -> None:
        """Fill ``into``, of :meth:`local_shape`, with the shards ``which``, side by side; padding is zero."""
        if self.dim is None:
            into.copy_(read(self.names[0], tuple(slice(0, size) for size in self.shapes[0])))
            return
        for number, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            for shard, (start, length) in zip(which, self._places(number, len(which)), strict=True):
                first, stop = shard * length, min((shard + 1) * length, shape[self.dim])
                count = max(0, stop - first)
                if count:
                    where = [slice(0, size) for size in shape]
                    where[self.dim] = slice(first, stop)
                    into.narrow(self.dim, start, count).copy_(read(name, tuple(where)))
                into.narrow(self.dim, start + count, length - count).zero_()

    def _places(self, number: int, shards: int) -> list[tuple[int, int]]:
        """Start and length along ``dim`` of tensor ``number`` in each of a process's ``shards``."""
        lengths = [size // self.shards for size in self.sizes]
        before = sum(lengths[:number])
        return [(shard * sum(lengths) + before, lengths[number]) for shard in range(shards)]
