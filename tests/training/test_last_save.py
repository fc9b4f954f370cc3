"""How training ends when a checkpoint cannot be written: with what it came to on disk, or saying so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from caat.data.loader import Loader, validation_batches
from caat.data.shards import TokenShards
from caat.training.checkpoint import saver as saving
from caat.training.checkpoint.saver import SaveError
from caat.training.checkpoint.state import State
from caat.training.control import Control
from caat.training.loop import Supervision, train
from caat.training.replicas import ReplicaGuard
from caat.training.signals import StoppedBySignal, StopRequest
from caat.training.watchdog import Watchdog
from conf.processes import ParallelConfig
from conf.schema import CheckpointConfig, Config, TrainConfig
from conf.sync import SyncConfig
from tests.data.conftest import write_shards
from tests.models import SMALL
from tests.training.test_checkpoint import saver, start

# The step of the last save: the last one, or that of a signal.
LAST = 4


def end(tokens: Path, out: Path, failing: int, asynchronous: bool, steps: int):
    """Train with saves at steps 3 and 4, the ``failing``-th of which finds no room on the disk.

    How it ended, and what is on disk.
    """
    config = Config(
        model=SMALL,
        sync=SyncConfig(ratio=0.5),
        parallel=ParallelConfig(tensor=4),
        train=TrainConfig(
            steps=steps, sequence=16, micro_batch=1, global_batch=1, eval_every=0, eval_sequences=2
        ),
        checkpoint=CheckpointConfig(every=3, asynchronous=asynchronous),
    )
    engine, control = start(4, 2, 0.5, 1), Control()
    shards, request, watchdog = TokenShards(tokens, "train"), StopRequest(), Watchdog(None, 0, 1, 600.0)
    step, publish, published = engine.step, saving.folders.publish, []

    def stopped(batches, rate):
        result = step(batches, rate)
        if engine.adam_steps == LAST:
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
        train(
            config,
            engine,
            Loader(shards, 16, 1, 1, 1),
            lambda: validation_batches(shards, 16, 1, 2),
            State(0, 0, 0, 16, 1, "", 0),
            Supervision(
                control,
                saver(out, engine, 0.5, asynchronous=asynchronous),
                request,
                watchdog,
                ReplicaGuard(engine.model, engine.model.blocks[-1], engine.mesh, control, 0),
            ),
            torch.device("cpu"),
            None,
        )
        how = "finished"
    except (SaveError, StoppedBySignal) as error:
        how = type(error).__name__
    finally:
        saving.folders.publish = publish
        watchdog.stop()
    dist.barrier()
    return how, sorted(path.name for path in (out / "checkpoints").iterdir())


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
