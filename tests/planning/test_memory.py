"""The plan's memory against the peak of real processes that train; sums and traffic by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.parallel.sums import SumOptions
from caat.planning.layouts import layout_of, needs, pass_of
from caat.planning.memory import memory
from caat.planning.parameters import local_numbers
from caat.planning.traffic import tensor_bytes
from caat.planning.zero import holding
from conf.model import ModelConfig
from conf.optim import OptimConfig
from conf.reading.options import GROUPS
from conf.reading.saved import save_config
from launch.run.compose import compose
from launch.run.summary import full_sync_bytes
from layers.weights import parameter_count
from tests.models import SMALL, batch, build

MEASURED = [
    (1, ["zero.stage=0"]),
    (1, ["zero.stage=0", "train.micro_batch=8", "train.activation_checkpointing=selective"]),
    (1, ["zero.stage=1", "train.micro_batch=8", "train.activation_checkpointing=full", "sync.ratio=1"]),
    (1, ["zero.stage=3", "train.global_batch=8"]),
    (1, ["zero.stage=2", "train.precision=bf16", "train.global_batch=8"]),
    (2, ["zero.stage=0", "train.micro_batch=8"]),
    (2, ["zero.stage=1", "train.precision=bf16", "train.micro_batch=4"]),
    (2, ["zero.stage=2", "parallel.processes=1", "train.global_batch=16"]),
    (1, ["zero.stage=1", "optim=sgd"]),
    (1, ["zero.stage=3", "optim=lamb"]),
    (2, ["zero.stage=1", "parallel.processes=1", "data_sync.codec=int4", "data_sync.weights_codec=int8"]),
    (2, ["zero.stage=3", "parallel.processes=1", "train.global_batch=16"]),
]


def measured_bytes(processes: int, settings: Path) -> int:
    """Peak of the first process above its baseline."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    env = os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        # Without it glibc keeps freed memory of up to 32 MiB a piece, and by chance.
        "MALLOC_MMAP_THRESHOLD_": "262144",
        # Where a CPU has bfloat16 of its own, oneDNN makes 25 MiB of code for it, for any model.
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    }
    result = subprocess.run(
        [*command, "-m", "tests.planning.measure", str(settings)], env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.strip().splitlines()[-1])
    return found["peak"] - found["baseline"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of a process")
@pytest.mark.parametrize(("processes", "settings"), MEASURED)
def test_the_plan_agrees_with_measurement(processes, settings, tmp_path):
    shape = ["model.hidden=512", "model.ffn=1408", "parallel.tensor=4", "train.global_batch=8"]
    config = compose([*shape, "train.micro_batch=4", *settings])
    save_config(config, tmp_path / "config.yaml")
    planned = needs(config, layout_of(config, processes), cuda=False)
    measured = measured_bytes(processes, tmp_path / "config.yaml")
    print(f"{planned.total / 2**20:.0f} MiB planned, {measured / 2**20:.0f} measured, {planned}")
    assert planned.total == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("model", GROUPS["model"])
def test_one_process_holds_the_whole_model(model):
    config = compose([f"model={model}"]).model
    assert local_numbers(config, 1, 1) == parameter_count(config)


def test_states_by_hand():
    # 1000 numbers on 4 replicas: bf16 weights, a float32 copy and two moments of a quarter.
    held = holding(1000, 4, 2, "bf16")
    assert (held.weights, held.optimizer, held.gradients) == (2000, 3000, 0)
    assert holding(1000, 4, 3, "bf16").weights == 500
    assert (holding(1000, 4, 0, "fp32").weights, holding(1000, 4, 0, "fp32").optimizer) == (4000, 8000)
    # SGD keeps its momentum, or nothing.
    for momentum, state in ((0.9, 1), (0.0, 0)):
        sgd = OptimConfig(name="sgd", momentum=momentum)
        assert holding(1000, 4, 0, "fp32", sgd).optimizer == 4000 * state
        assert holding(1000, 4, 3, "fp32", sgd).optimizer == 1000 + 1000 * state


def test_each_way_to_save_saves():
    def total(*settings: str, world: int = 8) -> int:
        config = compose(["model=7b", "train.micro_batch=4", *settings])
        return needs(config, layout_of(config, world)).total

    modes = [total(f"train.activation_checkpointing={mode}") for mode in ("none", "selective", "full")]
    assert modes == sorted(modes, reverse=True)
    assert total("zero.stage=1", world=64) < total("zero.stage=1")
    assert total("zero.stage=3", "parallel.processes=1") < total("zero.stage=2", "parallel.processes=1")
    config = compose(["model=7b"])
    by_hand = memory(pass_of(config, layout_of(config, 8), config.sync.ratio), 1, 1, "bf16", 1)
    # Seven numbers and their sum; weights and norms of an eighth in bf16.
    assert by_hand.weights == 2 * local_numbers(config.model, 8, 8)
    assert by_hand.total > by_hand.weights + by_hand.optimizer + by_hand.gradients + by_hand.activations


def counted_tensor_bytes(wire_dtype: str, model: ModelConfig = SMALL):
    """Counted and planned at ratio 0.5; of full synchronisation counted, and said in a run's summary."""
    config = compose([f"sync.wire_dtype={wire_dtype}"])
    config.model, config.parallel.tensor = model, 4
    config.train.micro_batch, config.train.global_batch = 2, 2
    config.train.sequence, config.train.precision = 9, "fp32"

    def counted(ratio: float, options: SumOptions) -> dict[str, int]:
        mesh = Mesh.create(4, 2, options)
        build(mesh, ratio, dtype=torch.float32, config=model)(*batch()).mean().backward()
        total = mesh.tensor.ledger.totals("forward", "backward")
        return {way: total[f"bytes_{way}"] for way in ("forward", "backward")}

    ours, full = counted(0.5, SumOptions.of(config.sync)), counted(1.0, SumOptions())
    planned = tensor_bytes(pass_of(config, layout_of(config, 2), 0.5), 1, config.sync.wire_format("fp32"))
    return sum(ours.values()), planned, full, full_sync_bytes(config, Mesh(4, 2), 0.5, ours, 2 * 9)


@pytest.mark.parametrize("wire_dtype", ["auto", "bfloat16", "int8"])
def test_tensor_parallel_bytes_are_those_counted(ranks, wire_dtype):
    for counted, planned, full, said_of_full in ranks(2).run(counted_tensor_bytes, wire_dtype):
        assert counted == planned
        assert full == said_of_full
