"""Parsers of rates, delays and sizes such as 1gbit, 5us and 80gb."""

from __future__ import annotations

import re

from conf.checks import require


def rate_bytes(rate: str, setting: str = "rate") -> float:
    """Return bytes per second of a rate such as 1gbit. Raise ``ValueError`` naming the ``setting``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt])bit", rate)
    require(match is not None, f"{setting}={rate} is not a rate in tc's notation: write 100mbit or 1gbit")
    assert match is not None
    require(float(match[1]) > 0, f"{setting}={rate} must be above 0")
    return float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match[2]] / 8


def delay_seconds(delay: str, setting: str = "delay") -> float:
    """Return the seconds of a delay such as 1ms. Raise ``ValueError`` naming the ``setting``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", delay)
    require(match is not None, f"{setting}={delay} is not a time in tc's notation: write 5us or 1ms")
    assert match is not None
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def memory_bytes(text: str) -> int:
    """Return the bytes of a size such as 80gb; a gb is 2^30 bytes, as for GPUs. Raise ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(mb|gb|tb)", text)
    require(match is not None, f"memory={text} is not a size: write 80gb or 512mb")
    assert match is not None
    require(float(match[1]) > 0, f"memory={text} must be above 0")
    return int(float(match[1]) * {"mb": 2**20, "gb": 2**30, "tb": 2**40}[match[2]])


def size_bytes(text: str, setting: str = "size") -> int:
    """Return the bytes of a size of data such as 40mb, which is 40 million. Raise ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)b", text)
    require(match is not None, f"{setting}={text} is not a size: write 40mb or 512kb")
    assert match is not None
    require(float(match[1]) > 0, f"{setting}={text} must be above 0")
    return int(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2]])


def check_link(rate: str, delay: str, burst: str) -> None:
    """Raise ``ValueError`` unless all three are in tc's notation."""
    rate_bytes(rate)
    delay_seconds(delay)
    require(
        re.fullmatch(r"\d+(\.\d+)?[kmg]?b", burst) is not None,
        f"burst={burst} is not a size in tc's notation: write 128kb or 1mb",
    )
