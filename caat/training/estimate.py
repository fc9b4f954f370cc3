"""Estimate the duration of a run before its first step, from the speed of a matrix product."""

from __future__ import annotations

import math
import time

import torch

from caat.supervision.device import PRECISIONS

SECONDS = 0.3
# Side of the matrices. On a GPU it is large enough to make the kernel launch negligible.
SIDE = {"cuda": 4096, "cpu": 768}


def product_rate(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of this process in a matrix product, while other ranks do the same.

    Measures the fastest product: slower ones may have been disturbed by other programs.
    """
    side = SIDE.get(device.type, SIDE["cpu"])
    factor = torch.ones(side, side, device=device, dtype=PRECISIONS[precision])
    _finished(factor @ factor)  # warm-up
    fastest, end = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end or fastest == math.inf:
        started = time.perf_counter()
        _finished(factor @ factor)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest


def forecast(step_seconds: float, steps: int) -> str:
    """Return the message about a run of ``steps`` that take about ``step_seconds`` each."""
    return (
        f"about {in_words(step_seconds)} a step, {in_words(step_seconds * steps)} in all, if it computes as "
        "fast as this machine multiplies matrices (caat plan says more, also for other machines)"
    )


def precision_note(device: torch.device, precision: str, rate: float) -> str:
    """Return a note if a CPU is faster in float32 than at ``rate``, its `product_rate` in ``precision``.

    CPUs without instructions for bfloat16 emulate them. Otherwise the note is empty.
    """
    if device.type != "cpu" or precision != "bf16":
        return ""
    factor = product_rate(device, "fp32") / rate
    if factor < 1.5:
        return ""
    return (
        f"note: this CPU multiplies matrices {factor:.2g} times as fast in float32 as in bfloat16; "
        "train.precision=fp32 trains faster here"
    )


def in_words(seconds: float) -> str:
    """Format a duration with two digits in the most readable unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return (
                f"{seconds / length:.0f} {unit}"
                if seconds >= 10 * length
                else f"{seconds / length:.1f} {unit}"
            )
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _finished(result: torch.Tensor) -> None:
    """Wait for the result: a GPU computes asynchronously."""
    result[0, 0].item()
