"""Where DeepSpeed keeps the numbers of a parameter in the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Maps numbers ``[start, start + size)`` of a parameter to ``[offset, offset + size)`` of ``weight``.

    ``weight`` belongs to the optimizer and is read as flat; None: this process holds none of the parameter.
    """

    weight: Tensor | None
    offset: int
    start: int
    size: int
