"""`caat evaluate`: table, JSON, the run's metrics, and what a user can get wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'caat[eval]'")

from caat.training.checkpoint.state import State, write_state
from conf.schema import Config
from launch import evaluate
from launch.config import save_config
from tests.eval.tasks import NAMES, write_tasks
from tests.trained import write_checkpoint


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def run(tmp_path):
    """A run that trained 7 steps."""
    checkpoint = write_checkpoint(tmp_path / "run", 2, 0.5)
    write_state(checkpoint, State(7, 700, 14, 16, 1, "0", 7), {})
    save_config(Config(), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 7, "tokens": 700, "loss": 5.0}\n')
    return tmp_path / "run"


def test_table_json_and_metrics(run, tasks, capsys):
    evaluate.main([f"checkpoint={run}", f"tasks={tasks}", "limit=4"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(run / "evaluation.json")
    found = json.loads((run / "evaluation.json").read_text())
    assert sorted(found["results"]) == sorted(NAMES) and found["limit"] == 4
    for task, metrics in found["results"].items():
        name, value = next(iter(metrics.items()))
        assert task in printed and name in printed and f"{value:.4f}" in printed
    before, after = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert before["loss"] == 5.0
    assert (after["step"], after["tokens"]) == (7, 700)
    assert after["eval/tiny_choice/acc"] == found["results"]["tiny_choice"]["acc"]
    assert not [name for name in after if name.endswith("_stderr")]


@pytest.mark.slow
def test_replicas_of_several_processes_give_the_same(run, tasks):
    results = []
    for processes in (1, 2, 4):  # 4: two replicas of 2 processes
        command = ["-m", "launch.evaluate", f"checkpoint={run}", f"tasks={tasks}"]
        command += [f"launch.processes={processes}", "precision=fp64"]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((run / "evaluation.json").read_text())["results"])
    for task, metrics in results[0].items():
        assert results[1][task] == pytest.approx(metrics, rel=1e-9)
        assert results[2][task] == pytest.approx(metrics, rel=1e-9)


MISTAKES = {
    "no tasks": (["tasks=none/such"], "tasks=none/such is not a folder"),
    "limit": (["limit=0"], "limit=0 must be above 0"),
    "few-shot": (["num_fewshot=-1"], "num_fewshot=-1 must not be negative"),
    "batch": (["batch=-1"], "batch=-1 must not be negative"),
    "checkpoint": (["checkpoint=nowhere"], "checkpoint=nowhere is not a folder"),
    "precision": (["precision=int4"], "precision=int4 is not known"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_the_model_is_loaded(name, run, monkeypatch):
    monkeypatch.setattr(evaluate, "on_mesh", lambda *_: 1 / 0)
    arguments, says = MISTAKES[name]
    with pytest.raises(ValueError, match=says):
        evaluate.main([f"checkpoint={run}", *arguments])
