"""Host memory that is pinned for a GPU, of exactly the size that is asked for."""

from __future__ import annotations

import mmap
import weakref

import torch
from torch import Tensor


def empty_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor in pinned memory; it stays pinned as long as this tensor object lives.

    Torch's own allocator (``pin_memory=True``) rounds every buffer up to a power of two and keeps it: right
    for small buffers that come and go, but it nearly doubles some that hold a model. Raises ``RuntimeError``
    if the driver cannot pin so much.
    """
    page = mmap.PAGESIZE
    size = torch.Size(shape).numel() * dtype.itemsize
    whole = -(-size // page) * page
    # A page can be pinned only once, so no two buffers may share one.
    buffer = torch.empty(whole + page, dtype=torch.uint8)
    pages = buffer[-buffer.data_ptr() % page :][:whole]
    tensor = pages[:size].view(dtype).view(shape)
    if size:
        cuda = torch.cuda.cudart()
        torch.cuda.check_error(cuda.cudaHostRegister(pages.data_ptr(), whole, 0))
        # The end of the process frees the pages as well, and CUDA may be gone by then.
        weakref.finalize(tensor, cuda.cudaHostUnregister, pages.data_ptr()).atexit = False
    return tensor
