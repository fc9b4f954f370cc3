"""The peak FLOP/s of a GPU, relative to which MFU is computed."""

from __future__ import annotations

import torch

from conf.gpus import peak_of


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """Return the peak for MFU: ``given``, otherwise from our table, otherwise ``None`` (no MFU)."""
    if given is not None or device.type != "cuda":
        return given
    return peak_of(torch.cuda.get_device_name(device))
