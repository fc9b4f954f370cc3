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
    scale = (x.abs().amax(-1, keepdim=True).double() / 127).float().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.cat([(x / scale).round_().to(torch.int8), scale.view(torch.int8)], -1)


def unpack(packed: Tensor) -> Tensor:
    """Invert :func:`pack`, up to rounding: [..., k + 4] -> [..., k] in float32."""
    scale = packed[..., -INT8_SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return packed[..., :-INT8_SCALE_BYTES] * scale
