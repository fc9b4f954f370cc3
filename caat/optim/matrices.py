"""The full matrices of a model, and where the flattened parameters of this process hold them.

A fused parameter, such as q, k and v in one, counts as several matrices: those that Hugging Face names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from caat.parallel.sharding import Sharding, sharded_parameters


class Range(NamedTuple):
    """Numbers ``[start, start + size)`` of a flattened parameter are of the matrix with this number."""

    matrix: int
    start: int
    size: int


@dataclass(frozen=True)
class Matrices:
    """The ranges of ``count`` matrices, by parameter; the matrices have the same numbers on all processes."""

    ranges: dict[str, list[Range]]
    count: int

    @staticmethod
    def of(model: nn.Module, held: int) -> Matrices:
        """Return the matrices of ``model``, of which each process holds ``held`` shards.

        Every matrix is sharded. DeepSpeed must not have partitioned the weights yet.
        """
        ranges: dict[str, list[Range]] = {}
        count = 0
        for name, parameter, sharding in sharded_parameters(model):
            if parameter.dim() > 1:
                ranges[name] = list(_ranges(parameter, sharding, held, count))
                count += len(sharding.sizes)
        matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
        assert matrices == ranges.keys(), matrices ^ ranges.keys()
        return Matrices(ranges, count)


def _ranges(parameter: nn.Parameter, sharding: Sharding, held: int, first: int) -> Iterator[Range]:
    """Yield the ranges of the matrices in ``parameter``, numbered from ``first`` on."""
    if len(sharding.sizes) == 1:
        yield Range(first, 0, parameter.numel())
        return
    assert sharding.dim == 0, "matrices fused along their columns are not contiguous"
    row = parameter.numel() // len(parameter)
    for number in range(len(sharding.sizes)):
        for start, length in sharding.places(number, held):
            yield Range(first + number, start * row, length * row)
