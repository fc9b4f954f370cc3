"""The shipped batch scripts on a real Slurm: two nodes, preemption and queueing again, an array of ratios."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eval.tasks import NAMES, write_tasks
from tests.paragraphs import PARAGRAPHS
from tests.slurm.cluster import ENDED, ROOT, Cluster, missing

pytestmark = pytest.mark.slurm

STEPS = 120
SETTINGS = [
    "model=tiny",
    "model.layers=1",
    "parallel.tensor=2",
    f"train.steps={STEPS}",
    "train.sequence=64",
    "train.eval_every=0",
    "train.eval_sequences=4",
    "optim.warmup_steps=2",
    "data.vocab_size=400",
    "data.validation=0.1",
    "data.path=own.txt",
]
PRETRAIN, EVALUATE = (str(ROOT / "slurm" / f"{name}.sbatch") for name in ("pretrain", "evaluate"))
# The nodes are no hosts: their names lead nowhere.
HERE = {"SCRIPTS": str(ROOT / "slurm"), "HEAD": "127.0.0.1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="caat-slurm-") as folder:
        daemons, work = Path(folder, "daemons"), Path(folder, "work")
        daemons.mkdir()
        work.mkdir()
        (work / "own.txt").write_text("\n\n".join(PARAGRAPHS))
        cluster = Cluster(daemons, work)
        yield cluster
        cluster.close()


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines) if "loss" in record]


def log(cluster: Cluster, job: str) -> str:
    return (cluster.work / f"slurm-{job}.out").read_text()


@pytest.fixture(scope="module")
def undisturbed(cluster) -> Path:
    """The run folder of a job on two nodes that nothing happened to."""
    job = cluster.sbatch("--nodes=2", PRETRAIN, *SETTINGS, **HERE)
    assert cluster.wait(job) == "COMPLETED", log(cluster, job)
    folder = cluster.work / f"outputs/slurm-{job}"
    assert "2 shards on 2 processes" in log(cluster, job)
    return folder


def test_two_nodes_train_one_model(undisturbed):
    assert [step for step, _ in losses(undisturbed)] == list(range(1, STEPS + 1))
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["tensor_parallel_bytes_per_step"]["forward"] > 0


def test_a_job_that_is_told_to_stop_goes_on_and_reaches_the_same_loss(cluster, undisturbed):
    """Twice: by the signal ahead of a time limit, and by a job that has precedence."""
    job = cluster.sbatch("--nodes=2", PRETRAIN, *SETTINGS, **HERE, RUN="disturbed")
    metrics = cluster.work / "disturbed/metrics.jsonl"

    def trained() -> int:
        return metrics.read_text().count("\n") if metrics.is_file() else 0

    def train_on() -> None:
        before, end = trained(), time.monotonic() + 120
        while trained() < before + 3:
            assert time.monotonic() < end and cluster.state(job) not in ENDED, log(cluster, job)

    train_on()
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait(job, until=("PENDING",))
    train_on()
    urgent = cluster.sbatch("--nodes=2", "--partition=urgent", "--wrap=srun sleep 1")
    assert cluster.wait(urgent) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", log(cluster, job)
    printed = log(cluster, job)
    assert printed.count("stopped and saved: requeued, to resume in disturbed") == 2, printed
    assert printed.count("resumed from disturbed/checkpoints/step-") == 2
    assert "by SIGUSR1" in printed and "by SIGTERM" in printed
    assert losses(cluster.work / "disturbed") == losses(undisturbed)


def test_a_trained_model_is_evaluated(cluster, undisturbed):
    pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install lm-eval")
    settings = [f"checkpoint={undisturbed}", f"tasks={write_tasks(cluster.work / 'tasks')}", "limit=2"]
    job = cluster.sbatch(EVALUATE, *settings, "out=scores.json", **HERE, PROCESSES="2")
    assert cluster.wait(job) == "COMPLETED", log(cluster, job)
    results = json.loads((cluster.work / "scores.json").read_text())["results"]
    assert sorted(results) == sorted(NAMES)


def test_a_sweep_is_a_job_array(cluster):
    command = [sys.executable, "-m", "launch.cli", "pretrain", "-m", *SETTINGS, "train.steps=4"]
    command += ["sync.ratio=1,0", "hydra.sweep.dir=sweep", "hydra/launcher=slurm", "hydra.launcher.time=5"]
    printed = cluster.run(*command, **HERE)
    assert printed.endswith("sweep/sweep.json\n")
    folders = [cluster.work / f"sweep/sync.ratio-{ratio}" for ratio in (0, 1)]
    job = (folders[0] / "slurm_job").read_text().split("_")[0]
    # The same command again queues nothing twice.
    assert printed.count(f"as job {job}_") == cluster.run(*command, **HERE).count(f"as job {job}_") == 2
    assert set(cluster.wait(job).split()) == {"COMPLETED"}
    assert all([step for step, _ in losses(folder)] == [1, 2, 3, 4] for folder in folders)
    assert losses(folders[0]) != losses(folders[1])
    report = json.loads((cluster.work / "sweep/report.json").read_text())
    assert "sync.ratio" in json.dumps(report) and (cluster.work / "sweep/report.html").stat().st_size > 10_000
    assert "0 to do, 2 finished before" in cluster.run(*command, **HERE)
