"""Settings of the synchronised channels and their numeric types: `sync.*`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from conf.checks import require, require_choice
from conf.field import setting
from conf.partition import paper_scale

# Each token's 8-bit integers are sent with one float32 scale.
INT8_SCALE_BYTES = 4


@dataclass(frozen=True)
class WireFormat:
    """Size of a message: ``number`` bytes per element plus ``scale`` bytes per token."""

    number: int
    scale: int = 0

    def token_bytes(self, channels: int) -> int:
        """Return the message bytes per token for ``channels`` channels; 0 if there are none."""
        return channels * self.number + self.scale if channels else 0


WIRE_FORMATS = {
    "int8": WireFormat(1, INT8_SCALE_BYTES),
    "bfloat16": WireFormat(2),
    "float32": WireFormat(4),
}


@dataclass
class SyncConfig:
    """Partial synchronisation of the residual stream (CAAT-Net, arXiv 2506.19645)."""

    ratio: Any = setting(
        0.5,
        "Fraction of the hidden channels that all shards share. 1 is Megatron's tensor parallelism. A "
        "schedule maps a number of completed steps to the fraction used from then on: {0:1,1000:0.5}.",
    )
    private_scale: Any = setting(
        1.0,
        "Factor on the private channels. sqrt is the paper's sqrt(parallel.tensor), which gives them the "
        "variance of a sum of N terms; models were better without it (docs/ablation.md).",
    )
    overlap: bool = setting(True, "Compute while sums are in flight. The result is the same.")
    halves: bool = setting(
        False,
        "Train on a micro-batch in two halves: one computes while the sums of the other are in flight, as in "
        "DeepSpeed-Domino. Faster at ratio 1 on slow links. The result is the same up to rounding.",
    )
    wire_dtype: str = setting(
        "auto",
        "Numeric type of the messages. auto is the type of the activations (train.precision). int8 halves "
        "the bytes of bfloat16: each process rounds its message, and the sum, to 8-bit integers with one "
        "scale per token.",
    )
    sum_dtype: str = setting(
        "auto",
        "Numeric type in which sums are computed before they are rounded once. auto is float32. bfloat16 "
        "with bfloat16 messages is a plain all-reduce, which rounds after every addition.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.ratio, dict):
            self.ratio = _checked_schedule(self.ratio)
        else:
            self.ratio = checked_ratio(self.ratio, f"sync.ratio={self.ratio}")
        self.private_scale = _checked_scale(self.private_scale)
        require(
            self.overlap or not self.halves,
            "sync.halves=true has no effect with sync.overlap=false: leave one of them out",
        )
        require_choice("sync.wire_dtype", self.wire_dtype, ("auto", *WIRE_FORMATS))
        require_choice("sync.sum_dtype", self.sum_dtype, ("auto", "bfloat16", "float32"))

    def scale(self, shards: int) -> float:
        """Return the factor on the private channels for ``shards`` shards."""
        return paper_scale(shards) if self.private_scale == "sqrt" else self.private_scale

    @property
    def schedule(self) -> dict[int, float]:
        """Return the schedule as {completed steps: ratio}, sorted. A constant ratio is {0: ratio}."""
        return self.ratio if isinstance(self.ratio, dict) else {0: self.ratio}

    @property
    def last_ratio(self) -> float:
        """Return the ratio at the end of training."""
        return self.schedule[max(self.schedule)]

    def ratio_of(self, step: int) -> float:
        """Return the ratio of step ``step`` (1 to ``train.steps``)."""
        return next(ratio for first, ratio in reversed(self.schedule.items()) if first < step)

    def describe_ratio(self) -> str:
        """Format the ratio for display: ``0.5``, or ``1 (0.5 after 1000 steps)``."""
        first, *later = self.schedule.items()
        changes = ", ".join(f"{ratio:g} after {step} steps" for step, ratio in later)
        return f"{first[1]:g}" + (f" ({changes})" if changes else "")

    def wire_format(self, precision: str) -> WireFormat:
        """Return the wire format of the layers' activations at this ``train.precision``."""
        return wire_format(self.wire_dtype, precision)

    def check_types(self, precision: str) -> None:
        """Raise ``ValueError`` if ``sum_dtype`` cannot sum the messages at this ``train.precision``."""
        if self.sum_dtype != "bfloat16":
            return
        require(
            self.wire_dtype != "int8",
            "sync.sum_dtype=bfloat16 does not go with sync.wire_dtype=int8: 8-bit integers are summed in "
            "float32, leave sync.sum_dtype out",
        )
        require(
            self.wire_format(precision) != WIRE_FORMATS["float32"],
            f"sync.sum_dtype=bfloat16 is narrower than the float32 messages (sync.wire_dtype="
            f"{self.wire_dtype}, train.precision={precision}): leave sync.sum_dtype out, or set "
            "sync.wire_dtype=bfloat16",
        )


def wire_format(wire_dtype: str, precision: str) -> WireFormat:
    """Return the wire format for ``wire_dtype``; ``auto`` follows ``precision``."""
    activations = "bfloat16" if precision == "bf16" else "float32"
    return WIRE_FORMATS[activations if wire_dtype == "auto" else wire_dtype]


def checked_ratio(ratio: Any, what: str) -> float:
    """Return ``ratio`` as a float. Raise ``ValueError`` naming ``what`` unless it is a number in [0, 1]."""
    require(
        isinstance(ratio, int | float) and not isinstance(ratio, bool),
        f"{what} is not a number from 0 to 1 or a schedule such as 'sync.ratio={{0:1,1000:0.5}}' (1 at "
        "first, 0.5 after 1000 steps)",
    )
    require(
        0.0 <= ratio <= 1.0,
        f"{what} is outside [0, 1]: it is the fraction of the channels that is synchronised (1 = all, as in "
        "Megatron; 0 = none)",
    )
    return float(ratio)


def _checked_scale(scale: Any) -> float | str:
    require(
        scale == "sqrt"
        or (isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < inf),
        f"sync.private_scale={scale} is neither a positive number nor sqrt (the root of parallel.tensor)",
    )
    return scale if scale == "sqrt" else float(scale)


def _checked_schedule(schedule: dict[Any, Any]) -> dict[int, float]:
    for step in schedule:
        require(
            isinstance(step, int) and not isinstance(step, bool) and step >= 0,
            f"sync.ratio has an entry for {step}: a schedule maps a whole number of completed steps to a "
            "ratio, as in 'sync.ratio={0:1,1000:0.5}'",
        )
    require(
        0 in schedule,
        f"sync.ratio={schedule} has no entry for step 0: add one, as in 'sync.ratio={{0:1,1000:0.5}}'",
    )
    return {
        step: checked_ratio(schedule[step], f"sync.ratio={schedule[step]} after {step} steps")
        for step in sorted(schedule)
    }
