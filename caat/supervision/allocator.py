"""How the C library manages the memory of a training process on a CPU."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt (malloc.h), whose values are of type int.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_large_buffers() -> None:
    """Let this process keep the memory of freed buffers for new ones, up to 2 GB each.

    By default, glibc returns every buffer above 32 MB, such as the logits of a batch, to the kernel, which
    has to clear the pages of the next one. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST)
        mallopt(TRIM_THRESHOLD, LARGEST)
