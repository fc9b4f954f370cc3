"""Run collectives in the background while the caller computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from caat.parallel.priority import wake_first

Wait = Callable[[], object]


def nothing() -> None:
    """The :data:`Wait` of a collective that has already completed."""


class Background:
    """Runs collectives, one after the other, while the caller computes: on a CUDA stream or in a thread."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._thread: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Tensor], None], message: Tensor) -> Wait:
        """Start ``work(message)``; the returned function waits for it and reraises its exception."""
        if not message.is_cuda:
            self._thread = self._thread or ThreadPoolExecutor(1, "caat-sum", initializer=wake_first)
            return self._thread.submit(work, message).result
        stream = self._stream = self._stream or torch.cuda.Stream(message.device, priority=-1)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work(message)
        message.record_stream(stream)
        return lambda: torch.cuda.current_stream().wait_stream(stream)
