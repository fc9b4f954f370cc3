"""Benchmarks of checkpoints: training with and without a save, and loading against plain reading.

A model is trained in intervals long enough that a save takes a tenth of one. Intervals with and without a
save take turns; so do loading and plain reading, both from the disk and not from the page cache.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from caat.optim.kinds import saved_numbers
from caat.parallel.mesh import Mesh
from caat.planning.costs import checkpoint_bytes
from caat.supervision.control import Control
from caat.training.checkpoint.architecture import Architecture
from caat.training.checkpoint.folder import find
from caat.training.checkpoint.reading import damage, load_optimizer, load_weights
from caat.training.checkpoint.saver import Saver
from caat.training.checkpoint.state import State
from caat.training.engine import Engine
from conf.bench import BenchCheckpointConfig
from conf.optim import OptimConfig
from conf.schema import CheckpointConfig
from layers.full_tensors import full_tensors
from layers.gpt import GPT
from layers.weights import initial_weights, parameter_count


class SavingBenchmark:
    """One model, saved and loaded in ``folder`` by all ranks together."""

    def __init__(self, config: BenchCheckpointConfig, folder: Path, control: Control) -> None:
        self.config, self.folder, self.control = config, folder, control
        self.shape = config.model(config.vocab_size)
        self.mesh = Mesh.create(config.shards, config.processes)
        self.model = GPT.empty(self.shape, self.mesh, 0.5).fill(initial_weights(self.shape, 1))
        self.tensors = full_tensors(self.model)
        self.engine = Engine(self.model, self.mesh, OptimConfig(), stage=1, precision="fp32", accumulation=1)
        text = torch.randint(self.shape.vocab_size, (config.batch, config.sequence + 1))
        self.batch = [(text[:, :-1], text[:, 1:])]
        self.parameters = parameter_count(self.shape)
        numbers = saved_numbers(self.engine.live.optimizer.kinds)
        self.bytes = checkpoint_bytes(self.shape, numbers)
        (folder / "tokenizer.model").touch()
        self.step = 0

    def saving(self) -> dict[str, str | float]:
        """Return the time of an interval with an asynchronous save, relative to one without."""
        self._train(3)
        waiting = self._saver(asynchronous=False)
        save_seconds = statistics.median(self._timed(lambda: self._save(waiting)) for _ in range(3))
        step_seconds = self._timed(lambda: self._train(5)) / 5
        steps = max(1, math.ceil(self.config.interval * save_seconds / step_seconds))
        saver = self._saver(asynchronous=True)
        self._save(saver)
        saver.wait()
        ratios, blocking, plain_seconds = [], [], []

        def with_save() -> None:
            blocking.append(self._timed(lambda: self._save(saver)))
            self._train(steps)

        for number in range(self.config.rounds):
            runs: list[Callable[[], None]] = [with_save, lambda: self._train(steps)]
            # Alternate the order: a machine that slows down then favours neither.
            times = {i: self._timed(runs[i]) for i in ((0, 1) if number % 2 else (1, 0))}
            saver.wait()
            ratios.append(times[0] / times[1])
            plain_seconds.append(times[1])
        return {
            "what": f"{steps} steps with a save / without",
            "seconds": statistics.median(plain_seconds),
            "sync_save_s": save_seconds,
            "blocked_s": statistics.median(blocking),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }

    def loading(self) -> dict[str, str | float]:
        """Return the time of verifying and loading, relative to reading the files, both from the disk."""
        checkpoint = find(self.folder)
        ratios, loads, reads = [], [], []
        for number in range(self.config.rounds + 1):
            read = self._timed(lambda: self._read(checkpoint), checkpoint)
            load = self._timed(lambda: self._load(checkpoint), checkpoint)
            if number > 0:
                ratios.append(load / read)
                loads.append(load)
                reads.append(read)
        return {
            "what": "loading with checksums / reading",
            "seconds": statistics.median(loads),
            "sync_save_s": "",
            "blocked_s": "",
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }

    def _saver(self, asynchronous: bool) -> Saver:
        architecture = Architecture(
            self.shape, self.mesh.shards, 0.5, self.model.shared_channels, self.model.private_scale
        )
        settings = CheckpointConfig(asynchronous=asynchronous, keep=1)
        checkpoints, tokenizer = self.folder / "checkpoints", self.folder / "tokenizer.model"
        return Saver(
            checkpoints,
            self.tensors,
            lambda: architecture,
            tokenizer,
            live=self.engine.live,
            settings=settings,
        )

    def _save(self, saver: Saver) -> None:
        self.step += 1
        length = self.config.sequence
        saver.save(State(step=self.step, tokens=0, position=0, sequence=length, seed=1, data=""))

    def _train(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step(self.batch, 1e-5)

    def _load(self, checkpoint: Path) -> None:
        assert damage(checkpoint, self.control) == []
        load_weights(self.model, self.tensors, self.mesh.local_shards, checkpoint)
        load_optimizer(self.engine.live, self.tensors, checkpoint)

    def _read(self, checkpoint: Path) -> None:
        """Read this rank's share of the bytes into memory, once."""
        paths = sorted(checkpoint.glob("*.safetensors"))
        for path in paths[self.control.rank :: self.control.world]:
            path.read_bytes()

    def _timed(self, run: Callable[[], None], uncached: Path | None = None) -> float:
        """Return the seconds until all ranks are done. ``uncached``: a folder to drop from the page cache."""
        for path in uncached.iterdir() if uncached else ():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        dist.barrier()
        started = time.perf_counter()
        run()
        dist.barrier()
        return time.perf_counter() - started
