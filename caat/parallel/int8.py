"""Activations as 8-bit integers: for each token, its channels and their common scale."""

from __future__ import annotations

import torch
from torch import Tensor

from conf.sync import INT8_SCALE_BYTES


def pack(x: Tensor) -> Tensor:
    """[..., k] -> [tokens, k + 4] of int8: round(x / scale), then the four bytes of the scale.

    scale = max |x| / 127 over the token's k channels, in float32. The error is at most half the scale. If one
    number is not finite, the whole token becomes so.
    """
    x = x.flatten(0, -2)
    largest = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True)
    scale = (largest.double() / 127).float().clamp_min(torch.finfo(torch.float32).tiny)
    packed = x.new_empty((x.shape[0], x.shape[1] + INT8_SCALE_BYTES), dtype=torch.int8)
    packed[:, :-INT8_SCALE_BYTES] = (x / scale).round_()
    packed[:, -INT8_SCALE_BYTES:] = scale.view(torch.int8)
    return packed


def unpack(packed: Tensor, out: Tensor | None = None) -> Tensor:
    """Invert :func:`pack`, up to rounding: [..., k + 4] -> [..., k] in float32, or written to ``out``."""
    scale = packed[..., -INT8_SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return torch.mul(packed[..., :-INT8_SCALE_BYTES], scale, out=out)
