"""What messages cost the cores of a planned machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from conf.field import setting
from conf.units import delay_seconds, rate_bytes


@dataclass
class MessageCostConfig:
    """The figures that `caat doctor` measures beside a link's rate and delay."""

    message_cost: str = setting(
        "0us",
        "Time that a message costs a process in addition to its time on the wire; caat doctor measures it. "
        "With gloo on CPUs about 1ms.",
    )
    core_rate: str | None = setting(
        None,
        "Rate at which a core sends, receives and adds messages, such as 10gbit; caat doctor measures it. "
        "Default: messages need no core, as with NCCL.",
    )

    def check_message_cost(self) -> None:
        """Raise ``ValueError`` unless both are in tc's notation."""
        delay_seconds(self.message_cost, "message_cost")
        if self.core_rate is not None:
            rate_bytes(self.core_rate, "core_rate")

    @property
    def message_seconds(self) -> float:
        return delay_seconds(self.message_cost)

    @property
    def core_bytes_per_second(self) -> float:
        return math.inf if self.core_rate is None else rate_bytes(self.core_rate)
