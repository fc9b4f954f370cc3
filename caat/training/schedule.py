"""The learning rate of every step."""

from __future__ import annotations

from math import cos, pi

from conf.optim import OptimConfig


def learning_rate(step: int, steps: int, c: OptimConfig) -> float:
    """Return the rate of ``step`` (1 to ``steps``): linear warm-up to ``lr``, then the schedule.

    cosine and linear decay to ``min_lr`` over all steps after the warm-up; constant stays at ``lr``; wsd
    (warm-up, stable, decay; MiniCPM, arXiv 2404.06395) stays at ``lr`` until the last ``decay_steps``
    (default a tenth), then decays linearly to ``min_lr``.
    """
    if step <= c.warmup_steps:
        return c.lr * step / c.warmup_steps
    if c.schedule == "constant":
        return c.lr
    decay = c.decay(steps) or steps - c.warmup_steps
    progress = max(0.0, (step - (steps - decay)) / decay)
    if c.schedule == "cosine":
        progress = (1 - cos(pi * progress)) / 2
    return c.lr + (c.min_lr - c.lr) * progress
