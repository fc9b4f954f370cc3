"""The arithmetic that a GPU could do at best, which MFU is measured against."""

from __future__ import annotations

import torch

# Dense bfloat16 peak in TFLOP/s, from the makers' data sheets. First match wins: H200 stands for GH200 too.
PEAK_TFLOPS = (
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.0),
    ("RTX 3090", 71.0),
)


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """The peak that MFU is measured against: ``given``, else from our table, else ``None`` (no MFU)."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS if part in name), None)
