"""Rates, times and sizes as a user writes them."""

from __future__ import annotations

import re

from conf.checks import require


def rate_bytes(rate: str, setting: str = "rate") -> float:
    """Bytes per second of a rate such as 1gbit; raises ``ValueError`` naming the ``setting``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt])bit", rate)
    require(match is not None, f"{setting}={rate} is not a rate of tc: write 100mbit, 1gbit, 400gbit")
    assert match is not None
    require(float(match[1]) > 0, f"{setting}={rate} carries nothing: give a rate above 0")
    return float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match[2]] / 8


def delay_seconds(delay: str) -> float:
    """Seconds of a delay such as 1ms; raises ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", delay)
    require(match is not None, f"delay={delay} is not a time of tc: write 5us, 1ms")
    assert match is not None
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def memory_bytes(text: str) -> int:
    """Bytes of a size such as 80gb (of 2^30 bytes, as makers of GPUs count); raises ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(mb|gb|tb)", text)
    require(match is not None, f"memory={text} is not a size: write 80gb or 512mb")
    assert match is not None
    return int(float(match[1]) * {"mb": 2**20, "gb": 2**30, "tb": 2**40}[match[2]])


def check_link(rate: str, delay: str, burst: str) -> None:
    """Raise ``ValueError`` unless all are as tc writes them."""
    rate_bytes(rate)
    delay_seconds(delay)
    require(
        re.fullmatch(r"\d+(\.\d+)?[kmg]?b", burst) is not None,
        f"burst={burst} is not a size of tc: write 128kb or 1mb",
    )
