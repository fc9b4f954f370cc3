"""When training saves by itself, and how it ends when it cannot: with its last step on disk, or saying so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from caat.data.loader import Loader, validation_batches
from caat.data.shards import TokenShards
from caat.supervision.control import Control
from caat.supervision.replicas import ReplicaGuard
from caat.supervision.signals import StoppedBySignal, StopRequest
from caat.supervision.watchdog import Watchdog
from caat.training.checkpoint import saver as saving
from caat.training.checkpoint.pace import Pace
from caat.training.checkpoint.saver import SaveError, Saver
from caat.training.checkpoint.state import State, read_state
from caat.training.engine import Engine
from caat.training.held_out import HeldOutText
from caat.training.loop import Supervision, Training, train
from conf.processes import ParallelConfig
from conf.schema import CheckpointConfig, Config, EvalConfig, TrainConfig
from conf.sync import SyncConfig
from tests.data.conftest import write_shards
from tests.models import SMALL
from tests.training.test_checkpoint import saver, start

# The step of the last save: the last one, or that of a signal.
LAST = 4


def trained(
    tokens: Path, engine: Engine, writer: Saver, request: StopRequest, steps: int, every: int, benchmarks=None
) -> None:
    """Train ``steps`` steps, with saves by ``writer`` every so many, and ``benchmarks`` every second one."""
    config = Config(
        model=SMALL,
        sync=SyncConfig(ratio=0.5),
        parallel=ParallelConfig(tensor=4),
        train=TrainConfig(
            steps=steps, sequence=16, micro_batch=1, global_batch=1, eval_every=0, eval_sequences=2
        ),
        checkpoint=CheckpointConfig(every=every),
        eval=EvalConfig(every=2),
    )
    control, shards, watchdog = Control(), TokenShards(tokens, "train"), Watchdog(None, 0, 1, 600.0)
    try:
        guard = ReplicaGuard(engine.model, engine.model.blocks[-1], engine.mesh, control, 0)
        train(
            Training(
                config=config,
                engine=engine,
                loader=Loader(shards, 16, 1, 1, 1),
                validation=HeldOutText.of(lambda: validation_batches(shards, 16, 1, 2)),
                state=State(step=0, tokens=0, position=0, sequence=16, seed=1, data=""),
                saver=writer,
                supervision=Supervision(control, request, watchdog, guard),
                device=torch.device("cpu"),
                benchmarks=benchmarks,
            )
        )
    finally:
        watchdog.stop()


def end(tokens: Path, out: Path, failing: int, asynchronous: bool, steps: int):
    """Train with saves at steps 3 and 4, the ``failing``-th of which finds no room on the disk.

    How it ended, and what is on disk.
    """
    engine, request = start(4, 2, 0.5, 1), StopRequest()
    step, publish, published = engine.step, saving.folders.publish, []

    def stopped(batches, rate, counted):
        result = step(batches, rate, counted)
        if engine.live.optimizer.steps == LAST:
            request.number = 15
        return result

    def full_disk(aside, folder):
        published.append(folder)
        if len(published) == failing:
            # Training is at its next step when this is found out.
            time.sleep(1.0 if asynchronous else 0.0)
            raise OSError(28, "No space left on device")
        publish(aside, folder)

    engine.step = stopped
    saving.folders.publish = full_disk
    try:
        trained(tokens, engine, saver(out, engine, 0.5, asynchronous=asynchronous), request, steps, every=3)
        how = "finished"
    except (SaveError, StoppedBySignal) as error:
        how = type(error).__name__
    finally:
        saving.folders.publish = publish
    dist.barrier()
    return how, sorted(path.name for path in (out / "checkpoints").iterdir())


class StepPace(Pace):
    """Whose clock is the step that training is at."""

    def __init__(self, engine: Engine, steps: int) -> None:
        super().__init__(1.0)
        self._engine, self._steps, self._begun = engine, steps, 0

    @property
    def due(self) -> bool:
        return self._engine.live.optimizer.steps - self._begun >= self._steps

    def begin(self) -> None:
        self._begun = self._engine.live.optimizer.steps


def by_time(tokens: Path, out: Path, due: list[int], every: int) -> dict[str, bool]:
    """Train 8 steps; from the step ``due[rank]`` on the clock of a rank says so, until something is saved.

    Which steps were saved, and whether for the time.
    """
    engine = start(4, 2, 0.5, 1)
    writer = saver(out, engine, 0.5, keep=0, asynchronous=False)
    writer._pace = StepPace(engine, due[dist.get_rank()])
    trained(tokens, engine, writer, StopRequest(), 8, every)
    dist.barrier()
    return {path.name: read_state(path)[0].by_time for path in sorted(out.glob("checkpoints/step-*"))}


def benchmarked(tokens: Path, out: Path) -> tuple[list[int], int]:
    """Train 4 steps with benchmarks that fail on rank 1: after which steps, and how many AdamW took."""
    engine, measured = start(4, 2, 0.5, 1), []

    def benchmarks(step: int) -> dict[str, float]:
        measured.append(step)
        return {"eval/a/b": 1.0 / (1 - dist.get_rank())}

    trained(tokens, engine, saver(out, engine, 0.5), StopRequest(), 4, 0, benchmarks)
    return measured, engine.live.optimizer.steps


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("last-save") / "tokens"
    write_shards(folder, [500], vocab_size=SMALL.vocab_size)
    return folder


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(("steps", "ended"), [(LAST, "finished"), (10, "StoppedBySignal")])
def test_a_save_that_failed_does_not_keep_the_last_from_being_made(
    ranks, tmp_path, tokens, asynchronous, steps, ended
):
    """The one at step 3 is still being written when training ends, or is told to."""
    for found in ranks(2).run(end, tokens, tmp_path, 1, asynchronous, steps):
        assert found == (ended, ["latest", "step-00000004"])


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("steps", [LAST, 10])
def test_a_last_save_that_fails_is_no_success(ranks, tmp_path, tokens, asynchronous, steps):
    for found in ranks(2).run(end, tokens, tmp_path, 2, asynchronous, steps):
        assert found == ("SaveError", ["latest", "step-00000003"])


@pytest.mark.parametrize(
    ("every", "saved"),
    [
        (0, {"step-00000003": True, "step-00000006": True, "step-00000008": False}),
        (4, {"step-00000003": True, "step-00000004": False, "step-00000007": True, "step-00000008": False}),
    ],
)
def test_saves_by_time_come_when_it_is_time_on_all_ranks(ranks, tmp_path, tokens, every, saved):
    """On rank 0 a step earlier than on rank 1, and beside those by steps."""
    assert ranks(2).run(by_time, tokens, tmp_path, [2, 3], every) == [saved, saved]


def test_benchmarks_that_fail_do_not_take_training_with_them(ranks, tmp_path, tokens):
    assert ranks(2).run(benchmarked, tokens, tmp_path) == [([2, 4], 4)] * 2
