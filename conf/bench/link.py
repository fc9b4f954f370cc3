"""The shaped link that benchmarks between network namespaces share."""

from __future__ import annotations

from dataclasses import dataclass

from conf.field import setting
from conf.units import check_link


@dataclass
class ShapedLinkConfig:
    """One or more rates of a link, at each of which a benchmark is run."""

    rate: str = setting(
        "1gbit",
        "Rate of the link, or several rates, in tc's notation: 1gbit, or 100mbit,1gbit,10gbit.",
    )
    delay: str = setting("0ms", "One-way delay, in tc's notation: 0ms, 1ms, ...")
    burst: str = setting(
        "128kb",
        "Bytes that may be sent at once above the rate. Keep it small, or the rate does not limit short "
        "messages.",
    )

    @property
    def rates(self) -> list[str]:
        return [rate.strip() for rate in self.rate.strip("[]").split(",")]

    def check_rates(self) -> None:
        """Raise ``ValueError`` unless tc accepts the link at every rate."""
        for rate in self.rates:
            check_link(rate, self.delay, self.burst)
