"""The settings of `caat doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DoctorConfig:
    """`caat doctor`: what this machine can do, and what to install or set for the rest.

    Under torchrun the link is measured between its ranks, else between two processes of this machine."""

    # Whether to measure the link (a few seconds).
    link: bool = True
    # Messages to measure it with, in KiB.
    sizes: list[int] = field(default_factory=lambda: [4, 64, 1024, 16384])
    # Where the JSON goes; default: outputs/doctor-<time>.json.
    out: str | None = None
