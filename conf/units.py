"""Parsers of rates, delays and sizes such as 1gbit, 5us and 80gb."""

from __future__ import annotations

import re

from conf.checks import check_magnitude, require


def rate_bytes(rate: str, setting: str = "rate") -> float:
    """Return bytes per second of a rate such as 1gbit. Raise ``ValueError`` naming the ``setting``."""
    units = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
    given = _quantity(rate, setting, units, "a rate in tc's notation: write 100mbit or 1gbit")
    require(given > 0, f"{setting}={rate} must be above 0")
    return given / 8


def delay_seconds(delay: str, setting: str = "delay") -> float:
    """Return the seconds of a delay such as 1ms. Raise ``ValueError`` naming the ``setting``."""
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
    return _quantity(delay, setting, units, "a time in tc's notation: write 5us or 1ms")


def memory_bytes(text: str) -> int:
    """Return the bytes of a size such as 80gb; a gb is 2^30 bytes, as for GPUs. Raise ``ValueError``."""
    units = {"mb": 2.0**20, "gb": 2.0**30, "tb": 2.0**40}
    given = _quantity(text, "memory", units, "a size: write 80gb or 512mb")
    require(given >= 1, f"memory={text} is below 1 byte: write 80gb or 512mb")
    return int(given)


def size_bytes(text: str, setting: str = "size") -> int:
    """Return the bytes of a size of data such as 40mb, which is 40 million. Raise ``ValueError``."""
    units = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
    given = _quantity(text, setting, units, "a size: write 40mb or 512kb")
    require(given > 0, f"{setting}={text} must be above 0")
    return int(given)


def check_link(rate: str, delay: str, burst: str) -> None:
    """Raise ``ValueError`` unless all three are in tc's notation."""
    rate_bytes(rate)
    delay_seconds(delay)
    require(
        re.fullmatch(r"\d+(\.\d+)?[kmg]?b", burst) is not None,
        f"burst={burst} is not a size in tc's notation: write 128kb or 1mb",
    )


def _quantity(text: str, setting: str, units: dict[str, float], kind: str) -> float:
    """Return the number in ``text`` times its unit. Raise ``ValueError`` if it is not ``kind``."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(units)})", text, re.ASCII)
    require(match is not None, f"{setting}={text} is not {kind}")
    assert match is not None
    found = float(match[1]) * units[match[2]]
    check_magnitude(found, setting, text)
    return found
