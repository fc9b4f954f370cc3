"""The arithmetic that a GPU could do at best, which MFU is measured against."""

from __future__ import annotations

import torch

from conf.gpus import peak_of


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """The peak that MFU is measured against: ``given``, else from our table, else ``None`` (no MFU)."""
    if given is not None or device.type != "cuda":
        return given
    return peak_of(torch.cuda.get_device_name(device))
