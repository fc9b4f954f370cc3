"""Saves beside training: what fails on one rank, what is slow, and what is visible meanwhile."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch.distributed as dist

from caat.training.checkpoint import saver as saving
from caat.training.checkpoint.saver import SaveError
from tests.models import batch
from tests.training.test_checkpoint import saver, start, state


def failing_save(folder, asynchronous: bool):
    """The first save cannot make its folder, the second is not finite on the last rank, the third is good."""
    engine = start(4, 2, 0.5, 0)
    writer = saver(folder, engine, 0.5, asynchronous=asynchronous)
    messages, still_open = [], []
    if dist.get_rank() == 0:
        (folder / "checkpoints").write_text("in the way")
    dist.barrier()
    for step in (1, 2, 3):
        if step == 2:
            if dist.get_rank() == 0:
                (folder / "checkpoints").unlink()
            engine.model.get_parameter("blocks.0.mlp.down.weight").detach()[0, 0] = float("nan")
        if step == 3:
            engine.model.get_parameter("blocks.0.mlp.down.weight").detach()[0, 0] = 1.0
        messages.append(saved(writer, step))
        still_open += open_files(folder)
    return messages, still_open


def open_files(folder: Path) -> list[str]:
    """Files below ``folder`` that this process holds open, deleted ones included, where Linux says so."""
    found = []
    for descriptor in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # that of the listing itself is closed by now
            found.append(os.readlink(descriptor))
    return [path for path in found if path.startswith(f"{folder}/")]


def saved(writer: saving.Saver, step: int) -> str:
    """What became of a save."""
    try:
        writer.save(state(step))
        writer.wait()
    except SaveError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_is_known_to_all_and_leaves_nothing(ranks, tmp_path, asynchronous):
    (first, *still_open), (second, *others) = ranks(2).run(failing_save, tmp_path, asynchronous)
    assert first == second
    assert still_open == others == [[]], "an open file keeps its space, and the disk may be full"
    assert "rank 0" in first[0] and "checkpoints" in first[0]
    assert "weight of model.layers.0.mlp.down_proj.weight holds nan or inf" in first[1]
    assert first[2] == "saved"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000003"]


def save_without_memory(folder):
    """The second rank has no room for what it would write; then the connection breaks; then the second rank
    has no room for its copy; then all is well."""
    engine = start(4, 2, 0.5, 0)
    writer = saver(folder, engine, 0.5)
    allocate, gather, take = writer._exchange.allocate, writer._control.gather, writer._snapshot.take
    messages = []

    def no_memory(*_):
        raise MemoryError("no memory")

    def closed(_):
        raise RuntimeError("Connection closed by peer")

    if dist.get_rank() == 1:
        writer._exchange.allocate = no_memory
    for step in (1, 2, 3, 4):
        writer._control.gather = closed if step == 2 else gather
        writer._snapshot.take = no_memory if step == 3 and dist.get_rank() == 1 else take
        messages.append(saved(writer, step))
        writer._exchange.allocate = allocate
    return messages


def test_a_rank_without_memory_or_connection_fails_the_save_of_all(ranks, tmp_path):
    assert ranks(2).run(save_without_memory, tmp_path, timeout=60) == [
        ["rank 1: no memory", f"rank {rank}: Connection closed by peer", "rank 1: no memory", "saved"]
        for rank in range(2)
    ]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000004"]


def beats_of_saves(folder):
    """Of a save that is slow in every part, and what was heard while one stood still."""
    engine = start(4, 2, 0.5, 0)
    writer = saver(folder, engine, 0.5)
    beats, ticks, while_still = [], [], []
    writer._beat, writer._tick = beats.append, lambda: ticks.append(1)
    saving.BEAT_SECONDS = 0.01
    run = writer._exchange.run

    def slow(turns, held):
        time.sleep(0.05)
        return run(turns, held)

    def still(turns, held):
        if not while_still:
            ticks.clear()
            time.sleep(0.5)
            while_still.append(len(ticks))
        return run(turns, held)

    writer._exchange.run = slow
    writer.save(state(1))
    writer.wait()
    heard, parts = len(ticks), len(writer._exchange.rounds)
    writer._exchange.run = still
    writer.save(state(2))
    writer.wait()
    saving.BEAT_SECONDS = 1.0
    return heard, parts, while_still[0], beats


def test_a_slow_save_is_no_hang_and_one_that_stands_still_is(ranks, tmp_path):
    for heard, parts, while_still, beats in ranks(2).run(beats_of_saves, tmp_path):
        # A rank with fewer beats than the others is taken for the one that hangs.
        assert beats == [f"waiting for checkpoint {step} to be on disk" for step in (1, 2)]
        assert parts / 2 < heard <= parts + 1
        assert while_still <= 1


def step_during_save(folder):
    """Whether training goes on while files are being written, and what is visible meanwhile."""
    engine = start(4, 2, 0.5, 1)
    writer = saver(folder, engine, 0.5)
    original = writer._write_files

    goes_on = threading.Event()

    def slow(aside, held):
        goes_on.wait()
        return original(aside, held)

    writer._write_files = slow
    writer.save(state(1))
    engine.step([batch()], 1e-2)
    visible = (folder / "checkpoints" / "latest").exists()
    threading.Timer(0.5, goes_on.set).start()
    writer.save(state(2))
    waited = goes_on.is_set()
    writer.wait()
    return visible, waited, (folder / "checkpoints" / "latest").read_text().strip()


def test_training_goes_on_while_files_are_written(ranks, tmp_path):
    for visible, waited, last in ranks(2).run(step_during_save, tmp_path):
        assert not visible
        assert waited, "a save that is due waits for the one in flight"
        assert last == "step-00000002"
