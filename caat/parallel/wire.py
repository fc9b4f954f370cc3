"""The format in which activations travel between processes."""

from __future__ import annotations

import torch
from torch import Tensor

from caat.parallel import int8

WIRE_DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32}


def to_wire(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return ``x`` [..., k] as a message of ``dtype`` (None: its own type); this may be ``x`` itself."""
    if dtype is torch.int8:
        return int8.pack(x)
    return x if dtype is None else x.to(dtype)


def from_wire(message: Tensor, x: Tensor) -> None:
    """Write a message in the format of :func:`to_wire` to ``x``."""
    if message.dtype is torch.int8:
        int8.unpack(message.view(*x.shape[:-1], -1), out=x)
    elif message is not x:
        x.copy_(message)
