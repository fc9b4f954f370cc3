"""What a save needs beside the model: about one parameter, however large the model is."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import pytest

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import Architecture
from caat.training.checkpoint.saver import Saver
from caat.training.checkpoint.state import State
from caat.training.engine import Engine
from caat.training.memory import peak_resident_bytes
from conf.model import ModelConfig
from conf.optim import OptimConfig
from conf.schema import CheckpointConfig
from layers.full_tensors import full_tensors
from layers.gpt import GPT
from layers.weights import initial_weights

# 13.5 MiB the largest parameter (gate and up), 140 MiB all of a kind.
WIDE = ModelConfig(layers=6, hidden=768, ffn=2304, heads=8, kv_heads=8, vocab_size=2048, sequence=16)
M_MMAP_THRESHOLD = -3  # malloc.h


def resident_bytes() -> int:
    kilobytes = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kilobytes
    return int(kilobytes[1]) * 1024


def extra_bytes(folder: Path) -> tuple[int, int]:
    """Peak of a save above what was resident before it, and the bytes of the largest tensor."""
    # Freed memory goes back at once, or what is free between other things would count or hide.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    mesh = Mesh.create(2, 2)
    model = GPT.empty(WIDE, mesh, 0.5).fill(initial_weights(WIDE, 1))
    engine = Engine(model, mesh, OptimConfig(), stage=1, precision="fp32", accumulation=1)
    (folder / "t.model").touch()
    architecture = Architecture(WIDE, 2, 0.5, model.shared_channels, model.private_scale)
    tensors, settings = full_tensors(model), CheckpointConfig(asynchronous=False)
    saver = Saver(
        folder / "checkpoints",
        tensors,
        lambda: architecture,
        folder / "t.model",
        live=engine.live,
        settings=settings,
    )
    saver.save(State(step=1, tokens=16, position=1, sequence=16, seed=1, data=""))
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    saver.save(State(step=2, tokens=32, position=2, sequence=16, seed=1, data=""))
    return peak_resident_bytes() - before, max(each.bytes for each in tensors)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a while")
def test_one_parameter_at_a_time(ranks, tmp_path):
    for extra, largest in ranks(2).run(extra_bytes, tmp_path):
        # As it arrives, and as it is laid out for the file.
        assert extra < 2 * largest, (extra / 2**20, largest / 2**20)
