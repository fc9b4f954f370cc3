"""One process of a run whose memory is measured: ``python -m tests.planning.measure SETTINGS``.

The baseline, interpreter and libraries, is what a run of a tiny model leaves resident.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from caat.parallel.mesh import Mesh
from caat.supervision.device import PRECISIONS, start_process_group, stop_process_group
from caat.training.engine import Engine
from caat.training.memory import peak_resident_bytes
from conf.reading.saved import read_config
from conf.schema import Config
from layers.gpt import GPT
from layers.weights import initial_weights

STEPS = 2


def train(config: Config, mesh: Mesh) -> None:
    """A few steps on random tokens, with what a run holds: model, engine, batches."""
    c = config.train
    how = config.sync.scale(mesh.shards), c.activation_checkpointing
    full = initial_weights(config.model, 1)
    model = GPT.empty(config.model, mesh, config.sync.ratio, *how, dtype=PRECISIONS["fp32"]).fill(full)
    accumulation = c.accumulation(mesh.data_size)
    engine = Engine(
        model, mesh, config.optim, stage=config.zero.stage, precision=c.precision, accumulation=accumulation
    )
    for _ in range(STEPS):
        text = torch.randint(config.model.vocab_size, (accumulation, c.micro_batch, c.sequence + 1))
        engine.step([(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in text], 1e-4)


def main(settings: Path) -> None:
    config = read_config(settings)
    torch.set_num_threads(1)
    start_process_group(torch.device("cpu"))
    processes = config.parallel.tensor_processes(dist.get_world_size())
    mesh = Mesh.create(config.parallel.tensor, processes, data_sync=config.data_sync)
    small = replace(config.model, layers=1, hidden=64, ffn=64, vocab_size=64)
    train(replace(config, model=small), mesh)
    gc.collect()
    # Linux forgets the peak so far.
    Path("/proc/self/clear_refs").write_text("5")
    baseline = peak_resident_bytes()
    train(config, mesh)
    if dist.get_rank() == 0:
        print(json.dumps({"baseline": baseline, "peak": peak_resident_bytes()}))
    stop_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
