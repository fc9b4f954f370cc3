"""Real gloo processes for tests: one pool per world size, reused by all tests until it is worn out."""

from __future__ import annotations

import gc
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class RankError(AssertionError):
    """A function failed on some rank; the message holds that rank's traceback."""


# Runs of a pool before it is replaced, in a third of a second: every gloo group leaves a polling thread until
# its process ends. After 20 runs, those of four idle processes use a quarter of a core.
LIFETIME = 5

# Ranks are forked from a process that has imported these, which takes seconds. It starts no threads, which a
# fork would lose.
PRELOAD = ["torch._dynamo", "deepspeed", "caat.training.engine", "tests.training.test_engine", "pytest"]


class Ranks:
    """``world`` processes in one gloo group; :meth:`run` calls a module-level function on every one."""

    def __init__(self, world: int) -> None:
        self.world, self._runs = world, 0
        self._folder = tempfile.TemporaryDirectory()
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        pipes = [context.Pipe() for _ in range(world)]
        self._pipes = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, world, self._folder.name), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
        """Return ``function(*arguments)`` of each rank. Raise :class:`RankError` with the first traceback."""
        self._runs += 1
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout):
                self.close()
                raise RankError(f"rank {rank} of {self.world} did not answer within {timeout} s")
            failed, result = pipe.recv()
            if failed:
                self.close()
                raise RankError(f"rank {rank} of {self.world} failed:\n{result}")
            results.append(result)
        return results

    @property
    def fresh(self) -> bool:
        """Whether the processes are alive and not slowed down by threads that earlier functions left."""
        return self._runs < LIFETIME and all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(pipe, rank: int, world: int, folder: str) -> None:
    # Collecting garbage would look through all that was imported, and copy its pages.
    gc.freeze()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    # Nothing listens on this port: the store is a file.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="9", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    store = dist.FileStore(os.path.join(folder, "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((False, function(*arguments)))
        except BaseException:
            pipe.send((True, traceback.format_exc()))
