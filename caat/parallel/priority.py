"""What moves messages goes first: it needs the device for microseconds, and arithmetic hides the rest."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

# Threads of gloo itself and of torch's process group on it.
GLOO_THREADS = ("gloo", "pt_gloo")
SHORTEST_SLICE_NS = 100_000
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


def sums_first(backend: str, timeout: timedelta) -> Any:
    """Options of a new process group: on a GPU its kernels go before arithmetic wherever both could run.

    ``timeout`` is the one that the group is made with; torch warns if they differ.
    """
    if backend != "nccl":
        return None
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options._timeout = timeout
    return options


def wake_gloo_first() -> None:
    """Let all of gloo's threads in this process run as soon as they have something to do."""
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with suppress(OSError):  # it may have ended
            if (task / "comm").read_text().startswith(GLOO_THREADS):
                wake_first(int(task.name))


def wake_first(thread: int | None = None) -> None:
    """Let a ``thread`` (default: this one) run as soon as it has something to do, where Linux can.

    A message thread needs a core for microseconds, yet waits for the whole time slice of a thread that
    computes, milliseconds, and what hides its message goes by unused. One that asks for short slices goes
    first; any user may ask. Kernels before 6.12 take no notice. A thread that the user gave another
    scheduling policy keeps it.
    """
    number = SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    thread = thread or threading.get_native_id()
    if os.sched_getscheduler(thread) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    # struct sched_attr: size, policy, flags, nice, priority, slice; deadline, period, utilisation clamps.
    attributes = struct.pack("IIQiIQQQII", 56, os.SCHED_OTHER, 0, nice, 0, SHORTEST_SLICE_NS, 0, 0, 0, 0)
    ctypes.CDLL(None).syscall(number, thread, attributes, 0)
