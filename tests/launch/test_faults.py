"""A few of the fault drills, and resuming on other layouts, as real runs started from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caat.runs.status import read_status, read_why
from tests.drills.drills import HANGS, Drill
from tests.drills.run import ROOT, STEPS, Run
from tests.paragraphs import PARAGRAPHS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drill(tmp_path_factory) -> Drill:
    base = tmp_path_factory.mktemp("drills")
    text = base / "own.txt"
    text.write_text("\n\n".join(PARAGRAPHS))
    reference = Run(base / "reference", text)
    assert reference.run() == 0, reference.output
    return Drill(base, text, reference)


@pytest.mark.parametrize(
    "hit",
    [
        lambda drill: drill.kill(2),
        lambda drill: drill.kill_and_restart(1),
        lambda drill: drill.stop(signal.SIGUSR1, True),
        lambda drill: drill.stop(signal.SIGINT, False),
        lambda drill: drill.damage("flipped", "optimizer.exp_avg.safetensors", "stop"),
        lambda drill: drill.fault("raise", {1}, "rank 1: the drill's own failure"),
        lambda drill: drill.fault("hang", {5}, HANGS),
    ],
    ids=["killed", "restarted", "stopped", "interrupted", "damaged", "raised", "hung"],
)
def test_a_run_survives(drill, hit):
    assert hit(drill).problems == []


def test_a_lone_process_that_hangs_says_so_in_its_status(drill):
    run = drill.new("alone", "launch.processes=1", "launch.hang_seconds=8")
    assert run.run(fault={"kind": "hang", "rank": 0, "step": 2}) == 5, run.output
    assert read_status(run.folder) == "failed"
    assert "rank 0 hangs while reading the data of step 2" in read_why(run.folder)


def test_an_error_does_not_wait_for_the_command_of_a_checkpoint(drill):
    run = drill.new("uploading", "checkpoint.after=[sleep,90]", "launch.hang_seconds=20")
    started = time.monotonic()
    assert run.run(fault={"kind": "raise", "rank": 0, "step": 5}) == 1, run.output
    assert time.monotonic() - started < 80
    assert "rank 0: the drill's own failure" in read_why(run.folder)


def test_a_run_moves_to_other_layouts(drill):
    """A run is stopped, resumed on one process, then on four with two replicas at stage 3, and finished."""
    run = drill.new("moves")
    for layout in (["launch.processes=1"], ["launch.processes=4", "parallel.processes=2", "zero.stage=3"]):
        before, process = run.steps_done(), run.start("resume=auto", *layout)
        run.until(lambda before=before: run.steps_done() >= before + 5, process)
        process.send_signal(signal.SIGTERM)
        assert run.end(process) == 75, run.output
    assert run.resume() == 0, run.output
    want, got = drill.reference.losses(), run.losses()
    assert [step for step, _ in got] == list(range(1, STEPS + 1))
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in want], abs=2e-4)


def test_a_finished_run_has_nothing_to_do(drill):
    config = drill.reference.folder / "config.yaml"
    before = config.read_text()
    assert drill.reference.resume("optim.lr=0.5") == 0
    assert config.read_text() == before, "it says what the run was trained with"
    assert f"nothing to do: all train.steps={STEPS} steps are done" in drill.reference.output


def test_torchrun_restarts_into_the_same_run(drill):
    run = drill.new("torchrun")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "launch.pretrain", *run.settings],
        cwd=run.folder.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.until(lambda: run.steps_done() >= 8, process)
    os.kill(run.workers(process)[0], signal.SIGKILL)
    assert run.end(process) == 0, run.output
    assert run.losses() == drill.reference.losses()
    assert Path(run.folder / "environment-2.json").is_file()
