"""Rotary position embedding (RoFormer, arXiv 2104.09864), in Hugging Face Llama's half-split layout."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(length: int, head_dim: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [length, 1, head_dim / 2] of position · base^(-2i / head_dim), in ``like``'s type.

    Computed in float64: in float32 the angle of position 100,000 is off by 0.004 rad.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=like.device) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=like.device), base**-exponent)
    return angles.cos()[:, None].to(like.dtype), angles.sin()[:, None].to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + d/2) of ``x`` [..., length, heads, d] by the angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
