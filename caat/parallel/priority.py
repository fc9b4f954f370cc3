"""Give communication priority over arithmetic: it needs the device only for microseconds at a time."""

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

# Name prefixes of the threads of gloo and of torch's gloo process group.
GLOO_THREADS = ("gloo", "pt_gloo")
SHORTEST_SLICE_NS = 100_000
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


def sums_first(backend: str, timeout: timedelta) -> Any:
    """Return options for a new process group: with NCCL, its kernels run on a high-priority stream.

    ``timeout`` must be the one that the group is created with; torch warns if they differ.
    """
    if backend != "nccl":
        return None
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options._timeout = timeout
    return options


def wake_gloo_first() -> None:
    """Let all of gloo's threads in this process run as soon as they have work."""
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with suppress(OSError):  # the thread may have ended
            if (task / "comm").read_text().startswith(GLOO_THREADS):
                wake_first(int(task.name))


def wake_first(thread: int | None = None) -> None:
    """Let a ``thread`` (default: this one) run as soon as it has work, if Linux supports it.

    A communication thread needs a core only for microseconds. By default it waits for the time slice of a
    computing thread to end, which takes milliseconds and delays the message that arithmetic should hide. A
    thread that requests short slices is scheduled first; this needs no privileges. Kernels before 6.12 ignore
    the request. Threads with another scheduling policy, set by the user, are left alone.
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
