"""What looks after a run: failed saves, replicas that drift, ranks that hang, signals, agreement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from caat.parallel.mesh import Mesh
from caat.supervision import replicas
from caat.supervision.control import Control
from caat.supervision.replicas import DriftError, ReplicaGuard
from caat.supervision.signals import StopRequest
from caat.supervision.watchdog import diagnosis, where
from caat.training.checkpoint import saver as saving
from caat.training.checkpoint.saver import SaveError
from caat.training.engine import Engine
from caat.training.trackers import JsonLines
from conf.optim import OptimConfig
from tests.models import batch, build
from tests.training.test_checkpoint import saver, start, state

ROOT = Path(__file__).parents[2]


def failing_save(folder, asynchronous: bool):
    """The first save cannot make its folder, the second is not finite on the last rank, the third is good."""
    engine = start(4, 2, 0.5, 0)
    writer = saver(folder, engine, 0.5, asynchronous=asynchronous)
    messages = []
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
    return messages


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
    first, second = ranks(2).run(failing_save, tmp_path, asynchronous)
    assert first == second
    assert "rank 0" in first[0] and "checkpoints" in first[0]
    assert "weight of model.layers.0.mlp.down_proj.weight holds nan or inf" in first[1]
    assert first[2] == "saved"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000003"]


def save_without_memory(folder):
    """The second rank has no room for what it would write."""
    engine = start(4, 2, 0.5, 0)
    writer = saver(folder, engine, 0.5)
    allocate = writer._exchange.allocate
    messages = []

    def no_memory():
        raise MemoryError("no memory")

    if dist.get_rank() == 1:
        writer._exchange.allocate = no_memory
    for step in (1, 2):
        messages.append(saved(writer, step))
        writer._exchange.allocate = allocate
    return messages


def test_a_rank_without_memory_fails_the_save_of_all(ranks, tmp_path):
    assert ranks(2).run(save_without_memory, tmp_path, timeout=60) == [["rank 1: no memory", "saved"]] * 2
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000002"]


def beats_of_saves(folder):
    """Of a save that is slow in every part, and what was heard while one stood still."""
    engine = start(4, 2, 0.5, 0)
    writer = saver(folder, engine, 0.5)
    beats, while_still = [], []
    writer._beat = beats.append
    saving.BEAT_SECONDS = 0.01
    run = writer._exchange.run

    def slow(turns, held):
        time.sleep(0.05)
        return run(turns, held)

    def still(turns, held):
        if not while_still:
            beats.clear()
            time.sleep(0.5)
            while_still.append(len(beats))
        return run(turns, held)

    writer._exchange.run = slow
    writer.save(state(1))
    writer.wait()
    heard, parts = len(beats), len(writer._exchange.rounds)
    writer._exchange.run = still
    writer.save(state(2))
    writer.wait()
    saving.BEAT_SECONDS = 1.0
    return heard, parts, while_still[0]


def test_a_slow_save_is_no_hang_and_one_that_stands_still_is(ranks, tmp_path):
    for heard, parts, while_still in ranks(2).run(beats_of_saves, tmp_path):
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


def drift(kind: str, stage: int):
    """What the guard says of good steps and of one in which the last rank's copy changed."""
    mesh = Mesh.create(4, 2)
    model = build(mesh, 0.5, dtype=torch.float32)
    engine = Engine(model, mesh, OptimConfig(lr=1e-2), stage=stage, precision="fp32", accumulation=1)
    guard = ReplicaGuard(model, model.blocks[-1], mesh, Control(), 2)
    last = dist.get_rank() == 3
    replicas.SHARDED_EACH_TIME = 100
    for step in (1, 2, 3, 4):
        guard.before(step)
        if step == 4 and last and kind == "channels":
            model.blocks[0].register_forward_hook(
                lambda module, inputs, out: out._replace(residual=out.residual + 1)
            )
        engine.step([batch(seed=step)], 1e-2)
        if step == 4 and last and kind == "norm":
            model.get_parameter("norm.weight").detach().view(torch.int32)[0] ^= 1
        if step == 4 and last and kind == "replica":
            model.get_parameter("blocks.1.mlp.down.weight").detach()[1, 1] += 1e-3
        try:
            guard.after(step)
        except DriftError as error:
            return step, str(error)
    return 4, ""


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_what_is_equal_passes(ranks, stage):
    assert set(ranks(4).run(drift, "nothing", stage)) == {(4, "")}


@pytest.mark.parametrize(
    ("kind", "stage", "says"),
    [
        ("norm", 0, "norm.weight on rank 3 differs from the others"),
        ("norm", 3, "norm.weight on rank 3 differs from the others"),
        ("replica", 1, "blocks.1.mlp.down.weight on rank"),
        ("channels", 0, "the shared channels of the residual stream on rank"),
    ],
)
def test_a_drift_is_named(ranks, kind, stage, says):
    for step, message in ranks(4).run(drift, kind, stage):
        assert step == 4 and says in message


def apart(kind: str):
    """After which step the guard complains about replicas that are to be equal after step 5 alone.

    It is to check every second step. From step 1 on the second replica has other weights.
    """
    mesh = Mesh.create(4, 2)
    model = build(mesh, 0.5, dtype=torch.float32)
    engine = Engine(model, mesh, OptimConfig(lr=1e-2), stage=0, precision="fp32", accumulation=1)
    guard = ReplicaGuard(model, model.blocks[-1], mesh, Control(), 2, equal_after=lambda step: step in (1, 5))
    replicas.SHARDED_EACH_TIME = 100
    weights = {name: model.get_parameter(name).detach() for name in ("norm.weight", "head.weight")}
    for step in range(1, 7):
        guard.before(step)
        engine.step([batch(seed=step)], 1e-2)
        if step == 1 and mesh.data_rank == 1:
            weights["norm.weight"].add_(1e-3)
            weights["head.weight"].add_(1e-3)
        if step == 4 and dist.get_rank() == 3 and kind == "within":
            weights["norm.weight"].view(torch.int32)[0] ^= 1
        if step == 5 and kind == "together":
            for weight in model.parameters():
                dist.broadcast(weight.detach(), mesh.tensor_rank, group=mesh.data.group)
        try:
            guard.after(step)
        except DriftError as error:
            return step, str(error)
    return None


def test_replicas_that_may_differ_are_compared_when_they_are_to_be_equal(ranks):
    for found in ranks(4).run(apart, "between"):
        assert found is not None and found[0] == 5
        assert "norm.weight on ranks" in found[1] and "head.weight on rank" in found[1]
    for found in ranks(4).run(apart, "within"):
        assert found is not None and found[0] == 4
        assert "norm.weight on rank " in found[1] and "head.weight" not in found[1]
    # Step 6 is checked again, but not between replicas.
    assert set(ranks(4).run(apart, "together")) == {None}


def agree():
    control = Control()
    return control.maximum(control.rank, 5 - control.rank), control.gather({"rank": control.rank})


def test_all_ranks_agree(ranks):
    for maximum, gathered in ranks(4).run(agree):
        assert maximum == [3, 5]
        assert gathered == [{"rank": i} for i in range(4)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_signal_is_a_request(number):
    # A shell starts jobs in the background with SIGINT ignored, and what is ignored stays so.
    before = signal.signal(number, signal.default_int_handler)
    try:
        with StopRequest() as request:
            request.training = True
            assert request.number == 0
            os.kill(os.getpid(), number)
            assert request.number == number
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("training", "signals", "says"),
    [
        (True, [signal.SIGINT, signal.SIGINT], "stopped at once by a second Ctrl-C"),
        (True, [signal.SIGINT, signal.SIGTERM], "stopped at once by a second Ctrl-C"),
        (False, [signal.SIGINT], "interrupted before training began: there was nothing to save"),
    ],
)
def test_ctrl_c_ends_what_computes_at_once(training, signals, says):
    """Though the main thread is not in Python, as in a product of matrices or a collective."""
    code = f"""
import ctypes, signal
from caat.supervision.signals import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopRequest() as request:
    request.training = {training}
    request.record = lambda why: print("recorded:", why, flush=True)
    print("ready", flush=True)
    # An interrupted sleep returns what is left.
    left = 60
    while left:
        left = ctypes.CDLL(None).sleep(left)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    printed = process.communicate(timeout=30)[0]
    assert process.returncode == 130, printed
    assert f"recorded: {says}" in printed and f"caat: {says}" in printed
    assert ("Ctrl-C: finishing this step, then saving" in printed) == training


def report(beats: int, doing: str, collective: str = "") -> dict:
    return {"beats": beats, "doing": doing, "at": "caat/x.py:1 (f)", "collective": collective}


def test_who_hangs_is_who_is_behind():
    text = diagnosis({0: report(9, "training step 3", "all_reduce"), 1: report(8, "reading")}, 2, 60, {})
    assert "no progress for 60 s; rank 1 hangs while reading, in caat/x.py:1 (f)" in text
    assert "rank 0 waits in all_reduce while training step 3" in text


def test_who_hangs_is_who_is_in_no_collective():
    reports = {0: report(9, "training", "all_reduce"), 1: report(9, "training")}
    assert "rank 1 hangs while training" in diagnosis(reports, 2, 60, {})


def test_who_says_nothing_is_frozen():
    text = diagnosis(
        {0: report(9, "training", "all_reduce"), 2: report(9, "training", "all_reduce")}, 3, 60, {}
    )
    assert "rank 1 does not answer" in text and "rank 2 waits" in text


def test_who_says_nothing_on_another_host_may_be_cut_off():
    text = diagnosis({0: report(9, "training", "all_reduce")}, 2, 60, {0: "here", 1: "there"})
    assert "rank 1 on there does not answer: frozen, or the network to it is down" in text
    assert "rank 0 on here waits in all_reduce" in text


def test_when_all_wait_nobody_is_blamed():
    reports = {rank: report(9, "training", "all_reduce") for rank in range(2)}
    assert "all ranks wait for each other" in diagnosis(reports, 2, 60, {})


def test_where_a_stack_is():
    assert where(None) == {"at": "unknown", "collective": ""}
    assert where(sys._getframe())["collective"] == ""


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    tracker = JsonLines(path, 2)
    tracker.log({"step": 3, "loss": 1.0})
    tracker.close({})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'
