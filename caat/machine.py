"""What this process may use of the machine, and what the machine is called."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may run on: fewer than there are under taskset, or in a Slurm job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
