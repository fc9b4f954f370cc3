"""The settings of `caat doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.field import setting


@dataclass
class DoctorConfig:
    """`caat doctor`: check what this machine can run, and what to install or set for the rest.

    It measures the link between the ranks of torchrun, if any, else between two processes on this machine."""

    link: bool = setting(True, "Measure the link, which takes a few seconds.")
    sizes: list[int] = setting([4, 64, 1024, 16384], "Message sizes to measure the link with, in KiB.")
    out: str | None = setting(None, "Path of the JSON. Default: outputs/doctor-<time>.json.")
