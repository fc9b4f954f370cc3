"""Whole runs on a GPU: every ZeRO stage, resuming, processes that share it, and the use of checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from caat.parallel.world import PLACE
from tests.paragraphs import PARAGRAPHS

ROOT = Path(__file__).parents[2]
DEVICE = "cuda"
AT_ONCE = 6
STEPS = 12
RUN = [
    "model=tiny",
    "model.layers=2",
    "parallel.tensor=4",
    f"train.steps={STEPS}",
    "train.sequence=64",
    "train.eval_every=0",
    "train.eval_sequences=8",
    "train.check_replicas_every=3",
    "optim.warmup_steps=2",
    f"launch.device={DEVICE}",
]
ON_ONE_GPU = ["launch.backend=gloo", "zero.stage=1"]
TWO_REPLICAS = [*ON_ONE_GPU, "launch.processes=2", "parallel.processes=1"]
BF16 = "train.precision=bf16"
CODECS = ["data_sync.codec=int8", "data_sync.weights_codec=int8", "zero.stage=2"]
SCHEDULE = ["data_sync.schedule=auto", "data_sync.topology=full:2"]
RUNS = {
    **{
        f"stage {stage} {precision}": [f"zero.stage={stage}", f"train.precision={precision}"]
        for stage, precision in product((0, 1, 2, 3), ("fp32", "bf16"))
    },
    "on the CPU": ["launch.device=cpu"],
    "full": [BF16, "train.activation_checkpointing=full"],
    "selective": [BF16, "train.activation_checkpointing=selective"],
    "compiled": [BF16, "train.compile=true"],
    "deterministic": [BF16, "train.deterministic=true", "checkpoint.every=6", "zero.stage=1"],
    "P=2": [*ON_ONE_GPU, "launch.processes=2"],
    "P=2 in halves": [*ON_ONE_GPU, "launch.processes=2", "sync.halves=true"],
    "P=4": [*ON_ONE_GPU, "launch.processes=4"],
    "P=4 bf16": [*ON_ONE_GPU, "launch.processes=4", BF16],
    "P=4 int8": [*ON_ONE_GPU, "launch.processes=4", BF16, "sync.wire_dtype=int8"],
    "P=2 twice at stage 3": [*ON_ONE_GPU, "launch.processes=4", "parallel.processes=2", "zero.stage=3"],
    "two replicas": TWO_REPLICAS,
    "two replicas along a schedule": [*TWO_REPLICAS, *SCHEDULE],
    "two replicas with codecs": [*TWO_REPLICAS, *CODECS],
    "deterministic with codecs": [*TWO_REPLICAS, *CODECS, "checkpoint.every=6", "train.deterministic=true"],
}


def python(*arguments: str) -> str:
    """Run ``python arguments`` and return what it printed, both streams."""
    # Without the variables that a process group in this process has set.
    kept = {name: value for name, value in os.environ.items() if name not in (*PLACE, "DS_ACCELERATOR")}
    environment = kept | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, env=environment
    )
    printed = result.stdout + result.stderr
    assert result.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "own.txt").write_text("\n\n".join(PARAGRAPHS))
    data = [f"data.path={folder}/own.txt", "data.vocab_size=400", "data.validation=0.1"]
    python("-m", "launch.tokenize", *data, f"out={folder}/tokens")
    return folder


def train(folder: Path, name: str, *settings: str) -> list[dict]:
    """Train in ``folder``/``name``; return the records of metrics.jsonl."""
    run = folder / name
    python("-m", "launch.pretrain", *RUN, f"data.path={folder}/tokens", f"run.dir={run}", *settings)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(folder):
    """All of :data:`RUNS`, a few at a time; ``runs(name)`` waits for one and returns its losses."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started: dict[str, Future] = {
            name: pool.submit(train, folder, name, *settings) for name, settings in RUNS.items()
        }
        yield lambda name: [record["loss"] for record in started[name].result()]
        for future in started.values():
            future.cancel()


def test_float32_as_on_the_cpu(runs):
    for stage in range(4):
        assert runs(f"stage {stage} fp32") == pytest.approx(runs("on the CPU"), abs=1e-4)


def test_bfloat16_at_every_stage(runs):
    for stage in range(4):
        assert runs(f"stage {stage} bf16") == pytest.approx(runs("on the CPU"), abs=0.03)


@pytest.mark.parametrize("name", ["full", "selective", "compiled", "deterministic"])
def test_recomputation_and_compilation(runs, name):
    assert runs(name) == pytest.approx(runs("stage 1 bf16"), abs=0.02)


@pytest.mark.parametrize(
    "name",
    [
        "P=2",
        "P=2 in halves",
        "P=4",
        "P=2 twice at stage 3",
        "two replicas",
        "two replicas along a schedule",
    ],
)
def test_processes_that_share_the_gpu(runs, name):
    assert runs(name) == pytest.approx(runs("on the CPU"), abs=1e-4)


@pytest.mark.parametrize("name", ["P=4 bf16", "P=4 int8", "two replicas with codecs"])
def test_rounded_messages(runs, name):
    assert runs(name) == pytest.approx(runs("on the CPU"), abs=0.05)


@pytest.mark.parametrize("name", ["deterministic", "deterministic with codecs"])
def test_resuming_gives_the_same_bits(runs, folder, name):
    whole = runs(name)
    checkpoint = folder / name / "checkpoints" / "step-00000006"
    resumed = train(folder, f"{name}, resumed", *RUNS[name], f"resume={checkpoint}")
    assert [record["loss"] for record in resumed][-6:] == whole[6:]


def test_checkpoints_of_the_gpu_are_read_on_the_cpu(runs, folder):
    runs("stage 3 fp32")
    np.save(folder / "tokens.npy", np.arange(65) % 300)
    scores = []
    for device in (DEVICE, "cpu"):
        out = folder / f"scores-{device}"
        python(
            "-m", "launch.score", f"checkpoint={folder}/stage 3 fp32", f"tokens={folder}/tokens.npy",
            f"out={out}", f"launch.device={device}",
        )  # fmt: skip
        scores.append(np.load(f"{out}.npy"))
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_generation(runs, folder, precision):
    runs("stage 3 fp32")
    out = folder / f"text-{precision}.json"
    python(
        "-m", "launch.generate", f"checkpoint={folder}/stage 3 fp32", "prompt=The city", "max_new_tokens=40",
        f"precision={precision}", f"out={out}", f"launch.device={DEVICE}",
    )  # fmt: skip
    assert out.stat().st_size > 0
