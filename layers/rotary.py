"""Rotary position embedding (RoFormer, arXiv 2104.09864), in Hugging Face Llama's half-split layout."""

from __future__ import annotations

import torch
from torch import Tensor

# Cosine and sine.
Angles = tuple[Tensor, Tensor]


def rotary_angles(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Angles:
    """Return cosine and sine [..., 1, head_dim / 2] of position · base^(-2i / head_dim), ``positions`` [...].

    Computed in float64: in float32 the angle of position 100,000 is off by 0.004 rad.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions[..., None, None] * base**-exponent
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of ``x`` [batch, length, heads, d] by the angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
