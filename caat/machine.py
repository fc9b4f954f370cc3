"""The cores and the memory that this process may use, and the name of the processor."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def available_cores() -> int:
    """Return the number of cores that this process may run on, which taskset or Slurm may restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def host_memory() -> tuple[int, int]:
    """Return total and free memory in bytes, within a container's limit."""
    text = Path("/proc/meminfo").read_text()
    total, free = (
        int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]
        for name in ("MemTotal", "MemAvailable")
    )
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
        total = min(total, int(allowed))
    return total, min(free, total)
