"""The batches of the next step, read while this one computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from caat.data.loader import Batch, Loader


class Prefetch:
    """The batches of ``loader`` on ``device``; a thread reads those of the next step while one computes.

    For a GPU the thread puts them into pinned memory, from which they are copied without making the CPU wait
    for the GPU. ``position`` counts the sequences of the batches that were handed out, over all ranks: it is
    what a checkpoint keeps, since the loader itself is one step ahead. ``counted`` and
    ``epochs`` are the loader's, after the last batches that were handed out.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self.position, self.counted, self.epochs = loader.position, loader.counted, loader.epochs
        self._loader, self._device = loader, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next = self._thread.submit(self._read)

    def step(self) -> list[Batch]:
        """Return this rank's micro-batches [micro_batch, S] of the next global batch, moving ``position``.

        What fails while they are read is raised here.
        """
        batches, self.position, self.counted, self.epochs = self._next.result()
        self._next = self._thread.submit(self._read)
        return [tuple(map(self._moved, batch)) for batch in batches]

    def _read(self) -> tuple[list[Batch], int, int | None, dict[str, float]]:
        batches = self._loader.step()
        if self._device.type == "cuda":
            batches = [tuple(part.pin_memory() for part in batch) for batch in batches]
        return batches, self._loader.position, self._loader.counted, self._loader.epochs

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)
