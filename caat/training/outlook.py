"""How long a run will take, before its first step: by what this device makes of a product of matrices."""

from __future__ import annotations

import math
import time

import torch

from caat.supervision.device import PRECISIONS

SECONDS = 0.3
# Sides of the matrices: on a GPU large enough for its start to count for nothing.
SIDE = {"cuda": 4096, "cpu": 768}


def product_rate(device: torch.device, precision: str) -> float:
    """Operations per second of this process in a product of matrices, while other ranks do the same.

    Of the fastest one: others may have met what else runs on this machine, and a step may not.
    """
    side = SIDE.get(device.type, SIDE["cpu"])
    factor = torch.ones(side, side, device=device, dtype=PRECISIONS[precision])
    _finished(factor @ factor)  # the first one also sets up
    fastest, end = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end or fastest == math.inf:
        started = time.perf_counter()
        _finished(factor @ factor)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest


def outlook(step_seconds: float, steps: int) -> str:
    """The line about a run of ``steps`` that take about ``step_seconds`` each."""
    return (
        f"about {in_words(step_seconds)} a step, {in_words(step_seconds * steps)} in all, if it computes as "
        "fast as this machine multiplies matrices (caat plan says more, also for other machines)"
    )


def in_words(seconds: float) -> str:
    """Two digits, in the unit that is easiest to read."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return (
                f"{seconds / length:.0f} {unit}"
                if seconds >= 10 * length
                else f"{seconds / length:.1f} {unit}"
            )
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _finished(result: torch.Tensor) -> None:
    """Wait for a GPU, which would only have been told to start."""
    result[0, 0].item()
