"""The peak memory of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a process inherits the peak of its parent.
        kilobytes = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert kilobytes
        return int(kilobytes[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_gib(device: torch.device) -> float:
    """Return the peak memory of this process so far: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_resident_bytes() / 2**30
