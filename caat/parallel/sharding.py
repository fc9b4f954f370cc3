"""Map full tensors to the shards that a process holds, and back.

Initial weights, checkpoints, imports and exports all split and join tensors here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

# Column slices are joined in strips of rows of about this size, to avoid a second full matrix in memory.
STRIP_BYTES = 16 * 2**20


class Sliceable(Protocol):
    """A full tensor that can be read in parts: a ``Tensor``, or a tensor in a safetensors file."""

    def __getitem__(self, where: tuple[slice, ...], /) -> Tensor: ...


# find(name, shape) -> the full tensor of this name and shape, without padding.
Find = Callable[[str, tuple[int, ...]], Sliceable]


@dataclass(frozen=True)
class Sharding:
    """One or more full tensors, each split along ``dim`` into N = ``shards`` equal slices.

    Shard i stacks the i-th slice of each: (q, k, v) for a fused projection. ``sizes`` are the full lengths
    along ``dim``, padding included. A process holds several consecutive shards side by side.
    """

    dim: int
    sizes: tuple[int, ...]
    shards: int

    def check(self, what: str) -> None:
        """Raise ``ValueError`` unless every part can be split into equal slices."""
        for size in self.sizes:
            if size % self.shards:
                raise ValueError(f"{what}={size} is not divisible by {self.shards} tensor-parallel shards")

    def cut(self, parts: Sequence[Tensor], which: Sequence[int]) -> Tensor:
        """Return the shards numbered ``which``, side by side, from the full parts."""
        shape = list(parts[0].shape)
        shape[self.dim] = sum(self.sizes) // self.shards * len(which)
        into = parts[0].new_empty(shape)
        for number, part in enumerate(parts):
            self.fill(into, number, part, tuple(part.shape), which)
        return into

    def fill(
        self, into: Tensor, number: int, part: Sliceable, shape: tuple[int, ...], which: Sequence[int]
    ) -> None:
        """Copy the slices of part ``number``, which has this ``shape``, to their places in ``into``.

        ``into`` holds the shards ``which``. Entries between ``shape`` and the padded size become zero.
        """
        for shard, (start, length) in zip(which, self.places(number, len(which)), strict=True):
            first, stop = shard * length, min((shard + 1) * length, shape[self.dim])
            count = max(0, stop - first)
            if count:
                where = [slice(0, size) for size in shape]
                where[self.dim] = slice(first, stop)
                into.narrow(self.dim, start, count).copy_(part[tuple(where)])
            into.narrow(self.dim, start + count, length - count).zero_()

    def places(self, number: int, held: int) -> list[tuple[int, int]]:
        """Return (start, length) along ``dim`` of part ``number`` in each of a process's ``held`` shards."""
        lengths = [size // self.shards for size in self.sizes]
        before = sum(lengths[:number])
        return [(shard * sum(lengths) + before, lengths[number]) for shard in range(held)]


def sharded_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Sharding]]:
    """Yield name, parameter and sharding of each parameter of a module with a ``sharding``, once.

    All other parameters are replicated on the tensor-parallel processes.
    """
    seen = set()
    for name, module in model.named_modules():
        if isinstance(sharding := getattr(module, "sharding", None), Sharding):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter not in seen:
                    yield f"{name}.{own}", parameter, sharding
                seen.add(parameter)


@dataclass(frozen=True)
class FullTensors:
    """The full tensors, by Hugging Face name, that make up one parameter.

    ``sharding`` None: the parameter is replicated, and every process holds its one tensor.
    """

    parameter: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sharding: Sharding | None

    @property
    def bytes(self) -> int:
        """Size of all tensors in float32."""
        return 4 * sum(prod(shape) for shape in self.shapes)

    def local_shape(self, processes: int) -> tuple[int, ...]:
        """Return the shape of the parameter on each of ``processes`` processes that share the shards."""
        shape = list(self.shapes[0])
        if self.sharding is not None:
            shape[self.sharding.dim] = sum(self.sharding.sizes) // processes
        return tuple(shape)

    def fill(self, into: Tensor, which: Sequence[int], find: Find) -> None:
        """Fill a parameter that holds the shards ``which`` side by side; padding becomes zero.

        Full tensors are looked up once each, one at a time.
        """
        for number, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            if self.sharding is None:
                into.copy_(find(name, shape)[tuple(slice(0, size) for size in shape)])
            else:
                self.sharding.fill(into, number, find(name, shape), shape, which)

    def strips(self, number: int, held: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield tensor ``number`` in consecutive strips of rows; ``held`` is the parameter by tensor rank."""
        if self.sharding is None:
            yield held[0]
            return
        shape, dim = self.shapes[number], self.sharding.dim
        slices = [
            process.narrow(dim, start, length)
            for process in held
            for start, length in self.sharding.places(number, self.sharding.shards // len(held))
        ]
        if dim == 0:
            left = shape[0]
            for part in slices:
                if left > 0:
                    yield part[:left]
                left -= len(part)
            return
        rows = max(1, STRIP_BYTES // (4 * shape[1]))
        for first in range(0, shape[0], rows):
            yield torch.cat([part[first : first + rows] for part in slices], dim=1)
