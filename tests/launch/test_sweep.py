"""Sweeps: their runs and folders, and the effect of giving the same command again."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from caat.runs.status import read_status, write_status
from conf.reading.overrides import initialise, parse_overrides
from launch import pretrain
from launch.command.processes import Stopped
from launch.run import local
from launch.run.compose import compose
from launch.run.folder import create_run_folder, open_run_folder
from launch.run.resume_command import quoted
from launch.sweep import here
from launch.sweep.combinations import combinations
from launch.sweep.outcomes import Outcome, report
from launch.sweep.plan import plan_sweep
from launch.sweep.slurm import submit
from tests.drills.run import ROOT
from tests.launch.test_local import start_of
from tests.paragraphs import PARAGRAPHS

SHORT = [
    "model=tiny",
    "model.layers=1",
    "parallel.tensor=2",
    "train.steps=3",
    "train.sequence=32",
    "train.eval_every=0",
    "train.eval_sequences=4",
    "optim.warmup_steps=1",
    "data.vocab_size=400",
    "data.validation=0.1",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_that_goes_on_can_be_given_as_it_is():
    odd = "it's a=b, (c) #1"
    run, _ = plan_sweep([f"hydra.sweep.dir={quoted(Path(odd))}", "seed=1,2"]).runs
    command = shlex.split(Outcome.of(run, "failed").resume)
    assert compose(command[2:]).run.dir == str(run.folder) and odd in str(run.folder)


def test_a_sweep_ends_with_losses_and_the_report_of_them(capsys):
    plan = plan_sweep(["hydra.sweep.dir='my sweep'", "seed=1,2,3,4"])
    outcomes = []
    for run, status, text in zip(
        plan.runs,
        ("finished", "finished before", "finished", "failed"),
        ('{"validation_loss": 3.25, "run": "x"}', '{"validation_loss": null}', "[", '{"validation_loss": 1}'),
        strict=True,
    ):
        outcomes.append(Outcome.of(run, status))
        run.folder.mkdir(parents=True)
        (run.folder / "summary.json").write_text(text)
    report(plan.folder, outcomes)
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split()[-1] for line in lines if line.startswith("seed-")}
    assert shown == {"seed-1": "3.2500", "seed-2": "-", "seed-3": "-", "seed-4": "-"}
    assert lines[-2].endswith("caat report 'my sweep'") and lines[-1] == "my sweep/sweep.json"
    rows = json.loads((plan.folder / "sweep.json").read_text())
    assert [row["validation_loss"] for row in rows] == [3.25, None, None, None]


def names(*overrides: str) -> list[str]:
    return [run.name for run in plan_sweep(overrides).runs]


def test_every_combination_is_a_run_named_by_what_varies():
    plan = plan_sweep(["sync.ratio=1,0.5", "train.steps=300", "seed=1,2"])
    assert [run.name for run in plan.runs] == [
        f"seed-{seed}_sync.ratio-{ratio}" for ratio in ("1", "0.5") for seed in (1, 2)
    ]
    assert [(run.config.sync.ratio, run.config.seed) for run in plan.runs] == [
        (1, 1),
        (1, 2),
        (0.5, 1),
        (0.5, 2),
    ]
    assert all(run.config.train.steps == 300 and run.config.resume == "auto" for run in plan.runs)
    assert plan.runs[0].folder == plan.folder / "seed-1_sync.ratio-1"
    for name in ("a b.txt", "c.txt"):
        Path(name).write_text("text")
    assert names("data.path='a b.txt',c.txt") == ["data.path-a-b.txt", "data.path-c.txt"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["sync.ratio=1,0.5", "train.steps=300", "seed=1,2", "model=tiny,130m"],
        ["seed=range(1,6)", "sync.ratio=range(0,1,0.25)", "optim.lr=choice(1e-3,2e-3)"],
        ["model=glob(*,exclude=7b)", "seed=range(5,1,-2)", "optim.lr=sort(3e-3,1e-3,reverse=true)"],
        ["seed=1,2", "train.steps=5", "seed=3,4,5", "train.steps=6"],
        ["data.path='a b.txt',c.txt", "run.dir=x", "tracker=[wandb,tensorboard]", "hydra.sweep.dir=y"],
        ["sync.ratio={0:1,10:0.5},{0:0}", "optim.betas=[0.9,0.95],[0.8,0.9]", "tracker.tags=[a,b]"],
        ["+hydra.launcher.comment=x", "hydra/launcher=slurm", "tracker.name='it\\'s',\"b=c\""],
    ],
)
def test_combinations_are_those_of_hydras_own_sweeper(overrides):
    with initialise():
        parsed = parse_overrides(overrides)
        assert combinations(parsed) == BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def test_texts_with_the_characters_that_hydra_escapes_stay_as_given():
    for name in ("a b.txt", "c:d.txt"):
        Path(name).write_text("text")
    fixed = ["data_sync.codec=qsgd:4", "data.path=a b.txt", "parallel.islands=2", "launch.processes=2"]
    fixed += ["islands.schedule=auto", "islands.topology=ring:2"]
    fixed += ["tracker.tags=[a:b,c d]", "tracker.name=e:f"]
    for run in plan_sweep([*fixed, "seed=1,2"]).runs:
        found = run.config
        assert (found.data_sync.codec, found.islands.topology) == ("qsgd:4", "ring:2")
        assert (found.data.path, found.tracker.tags, found.tracker.name) == ("a b.txt", ["a:b", "c d"], "e:f")
    plan = plan_sweep(["data_sync.codec=none,qsgd:4,topk:0.01,index=bitmap", "data.path=a b.txt,c:d.txt"])
    assert [(run.config.data_sync.codec, run.config.data.path) for run in plan.runs] == [
        (codec, path)
        for codec in ("none", "qsgd:4", "topk:0.01,index=bitmap")
        for path in ("a b.txt", "c:d.txt")
    ]
    lists = plan_sweep(["tracker.tags=[a:b],[c d]"]).runs
    assert [run.config.tracker.tags for run in lists] == [["a:b"], ["c d"]]
    assert len(plan_sweep(["experiment=codecs", "seed=1"]).runs) == 11


def test_runs_that_sbatch_refuses_stay_as_they_were(monkeypatch):
    """Else a run that has saved, and lost its checkpoints, would begin anew when it is queued again."""
    sbatch = Path("bin/sbatch")
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent.resolve()}:{os.environ['PATH']}")
    plan = plan_sweep(["hydra/launcher=slurm", "seed=1,2"])
    plan.folder.mkdir(parents=True)
    open_run_folder(plan.runs[0].config)
    write_status(plan.runs[0].folder, "stopped")
    assert plan.slurm is not None
    with pytest.raises(ValueError, match="sbatch says: invalid partition"):
        submit(plan.runs, plan.slurm, plan.folder, {})
    assert [read_status(run.folder) for run in plan.runs] == ["stopped", "unknown"]


def test_the_last_value_of_a_key_wins_however_it_is_written():
    assert names("seed=1,2", "++seed=3,4") == ["seed-3", "seed-4"]
    assert {run.config.seed for run in plan_sweep(["seed=1,2", "++seed=7", "sync.ratio=1,0.5"]).runs} == {7}


def test_an_experiment_that_sweeps_is_not_one_of_several():
    with pytest.raises(ValueError, match=r"experiment=ablation is a sweep of its own"):
        plan_sweep(["experiment=quickstart,ablation"])
    assert len(plan_sweep(["experiment=quickstart,uptrain"]).runs) == 2
    assert len(plan_sweep(["experiment=choice(quickstart,uptrain)"]).runs) == 2


def test_one_run_of_an_experiment_that_sweeps_is_said_to_be_one(capsys):
    too_long = ["train.steps=1", "optim.warmup_steps=9", "experiment=ablation"]
    with pytest.raises(SystemExit):
        pretrain.main([*too_long, "sync.ratio=1"])
    assert "a sweep of seed=1,2,3: -m" in capsys.readouterr().err
    for settings in ([*too_long, "sync.ratio=1", "seed=1"], [*too_long[:2], "experiment=quickstart"]):
        with pytest.raises(SystemExit):
            pretrain.main(settings)
        assert "a sweep" not in capsys.readouterr().err


def test_long_values_have_short_names():
    long = "p" * 300
    runs = plan_sweep([f"tracker.project={long},{long}q", "seed=1,2"]).runs
    assert len({run.name for run in runs}) == 4 and max(len(run.name) for run in runs) < 200
    with pytest.raises(ValueError, match=r"sync.ratio-1\.0 and sync.ratio-1 are the same run: leave one out"):
        plan_sweep(["sync.ratio=1,1.0"])
    with pytest.raises(ValueError, match=r"^train.steps=abc is not a whole number"):
        plan_sweep(["sync.ratio=1,0.5", "train.steps=abc"])
    with pytest.raises(ValueError, match=r"hydra.sweep.dir=.* is too long"):
        plan_sweep([f"hydra.sweep.dir={long}", "seed=1,2"])
    away = plan_sweep(["model.name=x/../../away", "seed=1,2"]).folder
    assert away.parent == Path("outputs/sweeps")


def test_the_folder_follows_from_what_the_runs_share():
    def place(*overrides: str) -> Path:
        return plan_sweep(overrides).folder

    first = place("model=tiny", "train.steps=300", "sync.ratio=1,0.5")
    assert first.parent == Path("outputs/sweeps") and first.name.startswith("tiny-")
    # More values, another order and other deployment settings do not matter.
    assert first == place("sync.ratio=1,0.5,0", "train.steps=300", "model=tiny")
    assert first == place(
        "model=tiny", "train.steps=300", "sync.ratio=1,0.5", "launch.processes=2", "zero.stage=0"
    )
    assert first != place("model=tiny", "train.steps=200", "sync.ratio=1,0.5")
    assert place("seed=1,2", "hydra.sweep.dir=ablation") == Path("ablation")
    assert place("model=tiny,130m").name.startswith("models-")


def finish(*overrides: str) -> None:
    """Make the folder of the sweep's only run, seed-1, look like that of a finished run."""
    (run,) = (run for run in plan_sweep(overrides).runs if run.name == "seed-1")
    create_run_folder(run.config)
    write_status(run.folder, "finished")


def test_what_is_finished_is_known_by_its_settings():
    finish("seed=1,2", "hydra.sweep.dir=x")
    again = plan_sweep(["seed=1,2", "hydra.sweep.dir=x", "launch.processes=2", "train.max_skipped=3"])
    assert [run.finished() for run in again.runs] == [True, False]
    other = plan_sweep(["seed=1,2", "hydra.sweep.dir=x", "optim.lr=2e-3"])
    with pytest.raises(ValueError, match=r"optim.lr=0.002, but the finished run in x/seed-1 has 0.001"):
        other.runs[0].finished()
    write_status(other.runs[0].folder, "stopped")
    assert not other.runs[0].finished()


def test_a_signal_in_the_last_figures_of_a_run_ends_the_sweep(monkeypatch):
    started = []

    def finished(_, arguments, *__):
        started.append(Path(arguments[1]).name)
        write_status(Path(arguments[1]), "finished")
        raise Stopped(143)

    monkeypatch.setattr(local, "run_workers", finished)
    monkeypatch.setattr(here, "set_up", start_of)
    plan = plan_sweep(["seed=1,2,3", "launch.processes=2", "hydra.sweep.dir=x"])
    outcomes = {run.name: Outcome.of(run, "not started") for run in plan.runs}
    with pytest.raises(Stopped) as stop:
        here.train(plan.runs, outcomes)
    assert stop.value.code == 75 and started == ["seed-1"]
    assert [outcome.status for outcome in outcomes.values()] == ["finished", "not started", "not started"]


@pytest.fixture
def text(folder) -> Path:
    path = folder / "own.txt"
    path.write_text("\n\n".join(PARAGRAPHS))
    return path


def start(folder: Path, *settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "pretrain", "-m", *SHORT, *settings, "hydra.sweep.dir=x"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def statuses(folder: Path) -> dict[str, str]:
    return {row["run"]: row["status"] for row in json.loads((folder / "x/sweep.json").read_text())}


@pytest.mark.slow
def test_one_fails_and_the_same_command_mends_it(text, folder):
    """A learning rate of 1e30 diverges. That run is reported; the other one is not trained twice."""
    settings = [f"data.path={text}", "optim.min_lr=0", "optim.clip=0", "train.max_skipped=1", "train.steps=4"]
    process = start(folder, *settings, "optim.lr=1e30,1e-3")
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == 1, printed
    table = printed[printed.index("why\n") :]
    assert "optim.lr-1e+30  failed" in table and "1 steps in a row" in table, printed
    assert "optim.lr-0.001  finished" in table
    assert "caat pretrain model=tiny" in table and "run.dir=x/optim.lr-1e+30 resume=auto" in table
    assert printed.splitlines()[-1] == "x/sweep.json"
    written = (folder / "x/optim.lr-0.001/metrics.jsonl").stat().st_mtime_ns
    process = start(folder, *settings, "train.max_skipped=9", "optim.lr=1e30,1e-3")
    printed = process.communicate(timeout=200)[0]
    assert statuses(folder)["optim.lr-0.001"] == "finished before", printed
    assert (folder / "x/optim.lr-0.001/metrics.jsonl").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_signal_stops_it_in_order_and_the_same_command_goes_on(text, folder):
    settings = [f"data.path={text}", "train.steps=40", "seed=1,2", "launch.processes=2"]
    process = start(folder, *settings)
    metrics = folder / "x/seed-1/metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == 75, printed
    assert statuses(folder) == {"seed-1": "stopped", "seed-2": "not started"}
    process = start(folder, *settings)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert "resumed from x/seed-1/checkpoints" in printed
    assert set(statuses(folder).values()) == {"finished"}
    for seed in (1, 2):
        lines = (folder / f"x/seed-{seed}/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))
