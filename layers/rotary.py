"""Rotary position embedding (RoFormer, arXiv 2104.09864), in Hugging Face Llama's half-split layout.

The frequencies may be scaled for longer sequences, by the formulas of `modeling_rope_utils.py` of
transformers: linear (arXiv 2306.15595), dynamic NTK, Llama 3's and YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from caat.parallel.partial.pointwise import compiling
from conf.model import ModelConfig

# Cosine and sine.
Angles = tuple[Tensor, Tensor]


def rotary_angles(positions: Tensor, c: ModelConfig, dtype: torch.dtype) -> Angles:
    """Return cosine and sine [..., 1, head_dim / 2] of position · frequency, ``positions`` [...].

    Computed in float64: in float32 the angle of position 100,000 is off by 0.004 rad.
    """
    angles = positions[..., None, None] * frequencies_at(positions, c)
    cos, sin = angles.cos(), angles.sin()
    if c.rope_scaling.kind == "yarn":
        scale = yarn_scale(c)
        cos, sin = cos * scale, sin * scale
    return cos.to(dtype), sin.to(dtype)


def frequencies_at(positions: Tensor, c: ModelConfig) -> Tensor:
    """Return the angles between neighbouring positions, float64 [head_dim / 2], in radians.

    Only dynamic scaling depends on ``positions``: on the highest one in the batch, as in transformers. Keys
    in a cache keep the angles of the pass that stored them.
    """
    s, d = c.rope_scaling, c.head_size
    exponent = torch.arange(0, d, 2, dtype=torch.float64, device=positions.device) / d
    if s.kind == "dynamic":
        assert s.factor is not None
        longer = (positions.max() + 1).clamp(min=c.sequence).double() / c.sequence
        return (c.rope_base * (s.factor * longer - (s.factor - 1)) ** (d / (d - 2))) ** -exponent
    frequencies = c.rope_base**-exponent
    if s.kind == "none":
        return frequencies
    assert s.factor is not None
    if s.kind == "linear":
        return frequencies / s.factor
    kept = _llama3_kept(c, frequencies) if s.kind == "llama3" else _yarn_kept(c, frequencies)
    return frequencies * (kept + (1 - kept) / s.factor)


def _llama3_kept(c: ModelConfig, frequencies: Tensor) -> Tensor:
    """Return 1 where a frequency is kept and 0 where it is divided, linear in the number of rotations."""
    s = c.rope_scaling
    assert s.original_sequence and s.low_freq_factor and s.high_freq_factor
    rotations = frequencies * (s.original_sequence / (2 * math.pi))
    return ((rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)


def _yarn_kept(c: ModelConfig, frequencies: Tensor) -> Tensor:
    """Return 1 where a frequency is kept and 0 where it is divided, linear in the number of the channel."""
    s = c.rope_scaling
    low, high = _channel_of(c, s.beta_fast), _channel_of(c, s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The upper limit counts channels, not pairs of channels, in all implementations.
    low, high = max(low, 0), min(high, c.head_size - 1)
    width = (high - low) or 0.001
    pairs = torch.arange(len(frequencies), dtype=torch.float64, device=frequencies.device)
    return 1 - ((pairs - low) / width).clamp(0, 1)


def _channel_of(c: ModelConfig, rotations: float) -> float:
    """Return the pair of channels, a fraction, that rotates this often within the original length."""
    assert c.rope_scaling.original_sequence is not None
    wavelength = c.rope_scaling.original_sequence / rotations
    return c.head_size * math.log(wavelength / (2 * math.pi)) / (2 * math.log(c.rope_base))


def yarn_scale(c: ModelConfig) -> float:
    """Return the factor of cosine and sine: its square is that of the attention logits."""
    s = c.rope_scaling
    assert s.factor is not None
    return 0.1 * math.log(s.factor) + 1 if s.attention_factor is None else s.attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of ``x`` [batch, length, heads, d] by the angles."""
    if torch.is_grad_enabled() and not compiling():
        return _Rotate.apply(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class _Rotate(torch.autograd.Function):
    """The same, with both halves of the result and of the gradient written where they belong at once."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    for (here, there), out, turned in zip(_halves(x), result.chunk(2, dim=-1), (-sin, sin), strict=True):
        torch.mul(here, cos, out=out).add_(there * turned)
    return result


def _halves(x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    first, second = x.chunk(2, dim=-1)
    return (first, second), (second, first)
