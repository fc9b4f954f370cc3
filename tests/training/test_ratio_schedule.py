"""A ratio that changes while training: the same as stopping there and going on as a model of that ratio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caat.data.loader import Loader, validation_batches
from caat.data.shards import TokenShards
from caat.parallel.mesh import Mesh
from caat.supervision.control import Control
from caat.supervision.replicas import ReplicaGuard
from caat.supervision.signals import StopRequest
from caat.supervision.watchdog import Watchdog
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.reading import load_master_weights, load_optimizer, load_weights
from caat.training.checkpoint.saver import Saver
from caat.training.checkpoint.state import State, read_state
from caat.training.engine import Engine
from caat.training.held_out import HeldOutText
from caat.training.loop import Supervision, Training, train
from caat.training.output import Output
from caat.training.profiling import Profiler
from conf.optim import OptimConfig
from conf.processes import ParallelConfig
from conf.schema import CheckpointConfig, Config, TrainConfig
from conf.sync import SyncConfig
from layers.full_tensors import full_tensors
from tests.data.conftest import write_shards
from tests.models import SMALL, build
from tests.training.test_checkpoint import architecture, differing, whole_state

SHARDS, STEPS = 4, 6
SCHEDULE = {0: 1.0, 2: 0.5, 5: 0.0}


class Log:
    """Keeps the records: the tracker, the samples and the terminal of a run."""

    def __init__(self) -> None:
        self.records: list[dict] = []

    def log(self, record) -> None:
        self.records.append(dict(record))

    def step(self, *_) -> None: ...

    def line(self, *_) -> None: ...

    def say(self, *_) -> None: ...

    def see(self, *_) -> None: ...

    def take(self) -> list:
        return []


def run(
    folder: Path,
    out: Path,
    ratio,
    processes: int,
    stage: int = 1,
    checkpointing: str = "none",
    precision: str = "fp32",
    source: Path | None = None,
    built_at: float | None = None,
):
    """Train through the loop into ``out``, from a checkpoint if given: records, and the state at the end.

    ``built_at`` is the ratio that the model is made with; the loop is to set the right one.
    """
    config = Config(
        model=SMALL,
        sync=SyncConfig(ratio=ratio),
        parallel=ParallelConfig(tensor=SHARDS),
        optim=OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=2),
        train=TrainConfig(
            steps=STEPS,
            sequence=16,
            micro_batch=1,
            global_batch=4,
            eval_every=3,
            eval_sequences=4,
            check_replicas_every=2,
        ),
    )
    mesh, control = Mesh.create(SHARDS, processes), Control()
    start_ratio = config.sync.ratio_of(1) if built_at is None else built_at
    model = build(mesh, start_ratio, checkpointing, dtype=torch.float32)
    tensors = full_tensors(model)
    start = State(step=0, tokens=0, position=0, sequence=16, seed=1, data="")
    if source is not None:
        load_weights(model, tensors, mesh.local_shards, source)
    engine = Engine(
        model, mesh, config.optim, stage=stage, precision=precision, accumulation=4 // mesh.data_size
    )
    if source is not None:
        load_master_weights(engine.live, tensors, source)
        assert load_optimizer(engine.live, tensors, source) == []
        start = read_state(source)[0]
    place = {"data_rank": mesh.data_rank, "data_size": mesh.data_size}
    shards = TokenShards(folder / "tokens", "train")
    loader = Loader(shards, 16, 1, 4, 1, **place, position=start.position)
    saver = Saver(
        out / "checkpoints",
        tensors,
        lambda: replace(architecture(SHARDS, model.ratio), ratio=model.ratio),
        folder / "t.model",
        live=engine.live,
        settings=CheckpointConfig(),
    )
    config.checkpoint.every = 1
    watchdog, log = Watchdog(None, 0, 1, 600.0), Log()
    profiler = Profiler({}, out, torch.device("cpu"), log.say)
    guard = ReplicaGuard(model, model.blocks[-1], mesh, control, 2)
    with StopRequest() as request:
        train(
            Training(
                config=config,
                engine=engine,
                loader=loader,
                validation=HeldOutText.of(lambda: validation_batches(shards, 16, 1, 4, **place)),
                state=start,
                saver=saver,
                supervision=Supervision(control, request, watchdog, guard),
                device=torch.device("cpu"),
                output=Output([log], log, log, profiler),  # type: ignore[arg-type,list-item]
            )
        )
    watchdog.stop()
    return log.records, whole_state(engine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("schedule")
    write_shards(path / "tokens", [2000], vocab_size=SMALL.vocab_size)
    (path / "t.model").write_bytes(b"not looked into here")
    return path


@pytest.fixture(scope="module")
def whole(ranks, folder):
    """The schedule on two processes, uninterrupted: records, and the state at the end."""
    return ranks(2).run(run, folder, folder / "whole", SCHEDULE, 2)[0]


def losses(records: list[dict], *names: str) -> list[list[float]]:
    return [[record.get(name) for name in ("loss", "validation_loss", *names)] for record in records]


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08}"


def test_a_schedule_that_never_changes_is_the_number(ranks, folder, tmp_path):
    number, end = ranks(2).run(run, folder, tmp_path / "a", 0.5, 2)[0]
    schedule, same_end = ranks(2).run(run, folder, tmp_path / "b", {0: 0.5, 3: 0.5}, 2)[0]
    assert losses(schedule) == losses(number) and differing(same_end, end) == []
    assert not any("validation_loss_before" in record for record in schedule)


@pytest.mark.parametrize(
    ("stage", "checkpointing", "precision"),
    [
        (3, "full", "fp32"),
        pytest.param(1, "full", "fp32", marks=pytest.mark.slow),
        pytest.param(3, "none", "fp32", marks=pytest.mark.slow),
        pytest.param(0, "none", "fp32", marks=pytest.mark.slow),
        pytest.param(2, "selective", "fp32", marks=pytest.mark.slow),
        pytest.param(1, "none", "bf16", marks=pytest.mark.slow),
    ],
)
def test_it_equals_going_on_as_a_model_of_that_ratio(
    ranks, folder, tmp_path, stage, checkpointing, precision
):
    """Each stretch is trained again by a model made at its ratio, with its state from disk."""
    how = (2, stage, checkpointing, precision)
    records, _ = ranks(4).run(run, folder, tmp_path / "whole", SCHEDULE, *how)[0]
    assert [record["ratio"] for record in records] == [1, 1, 0.5, 0.5, 0.5, 0]
    saved = [read_architecture(checkpoint(tmp_path / "whole", step)) for step in (2, 3, 6)]
    assert [(each.ratio, each.shared_channels) for each in saved] == [(1, 128), (0.5, 64), (0, 0)]
    for first, ratio in ((2, 0.5), (5, 0.0)):
        source = checkpoint(tmp_path / "whole", first)
        again = ranks(4).run(run, folder, tmp_path / f"from-{first}", ratio, *how, source)[0][0]
        stretch = [record["loss"] for record in records if record["ratio"] == ratio]
        assert [record["loss"] for record in again[: len(stretch)]] == stretch


@pytest.mark.parametrize("at", [1, 2])
def test_resumed_in_the_middle_it_is_the_same_run(ranks, folder, whole, tmp_path, at):
    records, end = whole
    source = checkpoint(folder / "whole", at)
    how = (2, 1, "none", "fp32", source, 0.25)
    resumed, same_end = ranks(2).run(run, folder, tmp_path / "again", SCHEDULE, *how)[0]
    names = ("validation_loss_before", "ratio", "tensor_parallel_bytes_forward")
    assert losses(resumed, *names) == losses(records[at:], *names)
    assert differing(same_end, end) == []


def test_validation_on_both_sides_of_a_change(whole):
    records, _ = whole
    assert ["validation_loss" in record for record in records] == [False, True, True, False, True, True]
    before = {record["step"]: record.get("validation_loss_before") for record in records}
    assert [step for step, loss in before.items() if loss is not None] == [3, 6]
    # The same weights, at the old ratio and at the new one.
    assert before[3] != records[1]["validation_loss"]


def test_only_what_is_synchronised_is_sent(whole):
    tokens, rest = 4 * 16, set()
    for record in whole[0]:
        inside = 2 * SMALL.layers * int(record["ratio"] * SMALL.hidden) * tokens * 4
        rest.add(record["tensor_parallel_bytes_forward"] - inside)
    assert len(rest) == 1
