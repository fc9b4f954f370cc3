"""Batches rows of unequal length into as few forward passes as memory allows, shared by the replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from caat.parallel.mesh import Mesh

# Default tokens per forward pass, padding included. On a GPU this is halved when memory runs out; on a CPU
# more would not be faster.
AUTOMATIC = {"cuda": 32768, "cpu": 2048}

Result = TypeVar("Result")


class Batches:
    """Runs work over rows, longest first, so that the rows of a batch have similar lengths.

    ``size``: rows per batch; 0: as many as ``tokens`` allow. ``watch(done, total)`` is called after each
    batch. Every process of a replica runs the same batches; each replica takes its share of the rows.
    ``alone``: no other process takes part in a forward pass (default: taken from the mesh).
    """

    def __init__(
        self,
        mesh: Mesh,
        size: int,
        tokens: int,
        watch: Callable[[int, int], None] = lambda done, total: None,
        alone: bool | None = None,
    ) -> None:
        self.mesh, self.size, self.tokens, self.watch = mesh, size, tokens, watch
        self.alone = mesh.processes == 1 if alone is None else alone

    def run(self, lengths: Sequence[int], work: Callable[[list[int]], Sequence[Result]]) -> list[Result]:
        """Return the result of every row. ``work`` gets the row numbers of one batch. Collective."""
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        mine = order[self.mesh.data_rank :: self.mesh.data_size]
        found: dict[int, Result] = {}
        while mine:
            rows = mine[: self._rows(lengths[mine[0]])]
            try:
                results = work(rows)
            except torch.OutOfMemoryError as error:
                self._shrink(len(rows), lengths[rows[0]], error)
                continue
            found.update(zip(rows, results, strict=True))
            mine = mine[len(rows) :]
            self.watch(len(found) * self.mesh.data_size, len(lengths))
        shares = self.mesh.data.gather_objects(found)
        found = {row: result for share in shares for row, result in share.items()}
        return [found[row] for row in range(len(lengths))]

    def _rows(self, longest: int) -> int:
        return self.size or max(1, self.tokens // longest)

    def _shrink(self, rows: int, longest: int, error: torch.OutOfMemoryError) -> None:
        """Halve later batches, if no other process is waiting in a collective of the failed pass."""
        if not self.alone or rows == 1:
            raise MemoryError(
                f"out of memory in a batch of {rows} rows of up to {longest} tokens: give a smaller batch "
                "or more processes"
            ) from error
        torch.cuda.empty_cache()
        if self.size:
            self.size = rows // 2
        else:
            self.tokens = rows // 2 * longest
