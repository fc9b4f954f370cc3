"""The settings of `caat doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.field import setting


@dataclass
class DoctorConfig:
    """`caat doctor`: what this machine can do, and what to install or set for the rest.

    Under torchrun the link is measured between its ranks, else between two processes of this machine."""

    link: bool = setting(True, "Measure the link, which takes a few seconds.")
    sizes: list[int] = setting([4, 64, 1024, 16384], "Sizes of the messages to measure it with, in KiB.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/doctor-<time>.json.")
