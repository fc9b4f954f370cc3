"""`caat evaluate`: its table, JSON and metrics, and the messages for users' mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install lm-eval")

from xxhash import xxh3_128

from caat.runs.status import read_status
from caat.training.checkpoint.folder import find
from caat.training.checkpoint.state import SavedOptimizer, State, write_state
from conf.reading.saved import save_config
from conf.schema import Config
from eval.quality.evaluate import _metrics, flat
from eval.quality.tasks import find_tasks
from launch import evaluate
from launch.run.compose import compose
from launch.run.validate import validate
from tests.eval.tasks import NAMES, write_tasks
from tests.launch.test_runs import SHORT
from tests.paragraphs import PARAGRAPHS
from tests.trained import write_checkpoint


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def run(tmp_path):
    """A run that was trained for 7 steps."""
    checkpoint = write_checkpoint(tmp_path / "run", 2, 0.5)
    files = {path.name: xxh3_128(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()}
    state = State(step=7, tokens=700, position=14, sequence=16, seed=1, data="0")
    write_state(checkpoint, state, SavedOptimizer("adamw", 7, ()), files)
    save_config(Config(), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 7, "tokens": 700, "loss": 5.0}\n')
    return tmp_path / "run"


def test_table_json_and_metrics(run, tasks, capfd, monkeypatch):
    monkeypatch.chdir(run)  # outside any git repository: git would print an error
    evaluate.main([f"checkpoint={run}", f"tasks={tasks}"])
    printed, complaints = capfd.readouterr()
    assert "fatal" not in complaints
    assert printed.splitlines()[-1] == str(run / "evaluation.json")
    found = json.loads((run / "evaluation.json").read_text())
    assert sorted(found["results"]) == sorted(NAMES) and found["limit"] is None
    for task, metrics in found["results"].items():
        name, value = next(iter(metrics.items()))
        assert task in printed and name in printed and f"{value:.4f}" in printed
    before, after = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert before["loss"] == 5.0
    assert (after["step"], after["tokens"]) == (7, 700)
    assert after["eval/tiny_choice/acc"] == found["results"]["tiny_choice"]["acc"]
    assert not [name for name in after if name.endswith("_stderr")]


def test_what_no_run_wrote_gets_its_results_beside_its_weights(run, tasks, tmp_path, monkeypatch, capsys):
    shutil.copytree(find(run), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    evaluate.main(["checkpoint=model", f"tasks={tasks}"])
    assert (tmp_path / "model" / "evaluation.json").is_file()
    # From any working directory, a run's results are in its folder.
    monkeypatch.chdir(find(run).parent)
    evaluate.main([f"checkpoint={find(run).name}", f"tasks={tasks}"])
    assert (run / "evaluation.json").is_file()
    assert "eval/tiny_choice/acc" in (run / "metrics.jsonl").read_text()


def test_a_run_that_cannot_be_read_costs_no_results(run, tasks, capsys):
    (run / "config.yaml").write_text("of: another version\n")
    evaluate.main([f"checkpoint={run}", f"tasks={tasks}"])
    assert json.loads((run / "evaluation.json").read_text())["results"]
    assert "WARNING: not added to the metrics of the run" in capsys.readouterr().err


def test_scores_of_a_part_are_kept_apart(run, tasks):
    evaluate.main([f"checkpoint={run}", f"tasks={tasks}"])
    before = [(run / name).read_text() for name in ("evaluation.json", "metrics.jsonl")]
    evaluate.main([f"checkpoint={run}", f"tasks={tasks}", "limit=1"])
    assert json.loads((run / "evaluation-limit-1.json").read_text())["limit"] == 1
    assert before == [(run / name).read_text() for name in ("evaluation.json", "metrics.jsonl")]


def test_results_of_other_tasks_are_kept(run, tasks, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, name in ((one, "tiny_choice"), (other, "tiny_perplexity")):
        folder.mkdir()
        shutil.copy(tasks / f"{name}.yaml", folder)
    out = run / "evaluation.json"
    evaluate.main([f"checkpoint={run}", f"tasks={one}"])
    evaluate.main([f"checkpoint={run}", f"tasks={other}"])
    both = json.loads(out.read_text())
    assert list(both["results"]) == ["tiny_choice", "tiny_perplexity"]
    # Those of another checkpoint are not, nor what no evaluation wrote.
    for earlier in (json.dumps(both | {"checkpoint": "other"}), "half a resu"):
        out.write_text(earlier)
        evaluate.main([f"checkpoint={run}", f"tasks={one}"])
        assert list(json.loads(out.read_text())["results"]) == ["tiny_choice"]


def test_a_place_that_cannot_be_written_is_said_first(run, tasks, tmp_path, capsys):
    for out, says in ((tmp_path, "is a folder"), (run / "config.yaml" / "x", "is not a folder")):
        with pytest.raises(ValueError, match=f"cannot be written.*{says}"):
            evaluate.main([f"checkpoint={run}", f"tasks={tasks}", f"out={out}"])
    assert not capsys.readouterr().out


def test_standard_errors_are_told_from_filtered_metrics():
    found = _metrics(
        {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": 0.1,
            "acc,none": 0.25,
            "acc_stderr,none": "N/A",
        }
    )
    assert found == {"exact_match,strict-match": 0.5, "exact_match,strict-match_stderr": 0.1, "acc": 0.25}
    assert list(flat({"gsm8k": found})) == ["eval/gsm8k/exact_match,strict-match", "eval/gsm8k/acc"]


@pytest.mark.slow
def test_replicas_of_several_processes_give_the_same(run, tasks):
    results = []
    for processes in (1, 2, 4):  # 4: two replicas of 2 processes
        command = ["-m", "launch.evaluate", f"checkpoint={run}", f"tasks={tasks}"]
        command += [f"launch.processes={processes}", "precision=fp64"]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((run / "evaluation-precision-fp64.json").read_text())["results"])
    for task, metrics in results[0].items():
        assert results[1][task] == pytest.approx(metrics, rel=1e-9)
        assert results[2][task] == pytest.approx(metrics, rel=1e-9)


def pretrain(folder, text, *settings: str) -> list[dict]:
    """Return the lines that a short training run logged."""
    command = ["-m", "launch.pretrain", *SHORT, f"data.path={text}", f"run.dir={folder}", *settings]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def benchmarks(record: dict) -> dict:
    return {name: value for name, value in record.items() if name.startswith("eval/")}


@pytest.mark.slow
def test_in_training(tasks, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("\n\n".join(PARAGRAPHS))
    evaluating = ["launch.processes=2", "eval.every=3", f"eval.tasks=[{tasks}]", "eval.limit=3"]
    plain = pretrain(tmp_path / "plain", text, "launch.processes=2")
    whole = pretrain(tmp_path / "whole", text, *evaluating)
    assert [line["loss"] for line in whole if "loss" in line] == [line["loss"] for line in plain]
    # Every third step and the last one.
    assert [record["step"] for record in whole if benchmarks(record)] == [3, 4]
    assert "eval/tiny_choice/acc" in whole[-1]
    # Stopped after the third step and resumed: no step is evaluated twice.
    cut = tmp_path / "cut"
    pretrain(cut, text, *evaluating, "train.steps=3", "optim.schedule=constant")
    resumed = pretrain(cut, text, *evaluating, "resume=auto", "optim.schedule=constant")
    assert [line["step"] for line in resumed if "loss" in line] == [1, 2, 3, 4]
    assert [record["step"] for record in resumed if benchmarks(record)] == [3, 4]


@pytest.mark.slow
def test_benchmarks_that_fail_lose_no_checkpoint(tasks, tmp_path):
    """The training state is saved first, although no save is due, and the run ends as finished."""
    text = tmp_path / "own.txt"
    text.write_text("\n\n".join(PARAGRAPHS))
    # lm-eval checks the first question when it loads a task; this one is valid.
    broken = tmp_path / "broken"
    shutil.copytree(tasks, broken)
    task = yaml.safe_load((broken / "tiny_choice.yaml").read_text())
    task["doc_to_text"] = "{{ 1 // (1 - gold) }}"
    for other in broken.glob("*.yaml"):
        other.unlink()
    (broken / "tiny_choice.yaml").write_text(yaml.safe_dump(task))
    run = tmp_path / "run"
    records = pretrain(run, text, "eval.every=3", f"eval.tasks=[{broken}]")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved == ["step-00000003", "step-00000004"]
    warning = "WARNING: the benchmarks failed (TaskError: task tiny_choice"
    assert (run / "log.txt").read_text().count(warning) == 2
    assert read_status(run) == "finished"


def test_a_task_that_generates_beyond_the_context_is_found_before_the_run(tasks):
    find_tasks([str(tasks)]).check(7)
    with pytest.raises(ValueError, match=r"task tiny_generation .* it generates up to 6 tokens, .* of 6"):
        find_tasks([str(tasks)]).check(6)


def changed(tasks, folder, name: str, **settings):
    """Return a folder with only this task, with other settings."""
    shutil.copytree(tasks, folder)
    for path in folder.glob("*.yaml"):
        if path.stem != name:
            path.unlink()
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"until": [""]}, r"until=\[''\] in its generation_kwargs must be non-empty texts"),
        ({"until": [5]}, r"until=\[5\] in its generation_kwargs must be non-empty texts"),
        ({"do_sample": True, "temperature": 0.7, "top_k": -1}, "top_k=-1 must not be negative"),
        ({"max_gen_toks": "many"}, "many"),
        ({"max_gen_toks": 0}, "max_new_tokens=0 must be above 0"),
        ({"do_sample": True, "temperature": 0.7, "top_k": "x"}, "top_k='x': give a whole number"),
        ({"do_sample": True, "temperature": 0.7, "top_k": 2.5}, "top_k=2.5: give a whole number"),
        ({"do_sample": True, "temperature": 0.7, "top_p": "x"}, "top_p='x': give a number"),
    ],
)
def test_a_task_that_cannot_generate_is_named_at_once(run, tasks, tmp_path, monkeypatch, arguments, says):
    monkeypatch.setattr(evaluate, "on_mesh", lambda *_: 1 / 0)
    folder = changed(tasks, tmp_path / "changed", "tiny_generation", generation_kwargs=arguments)
    with pytest.raises(ValueError, match=f"task tiny_generation cannot be run: .*{says}"):
        evaluate.main([f"checkpoint={run}", f"tasks={folder}"])


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        (
            "tiny_choice",
            {"num_fewshot": 0},
            "its file has num_fewshot: 0, so that lm-eval ignores num_fewshot=2",
        ),
        ("tiny_perplexity", {}, "it measures whole texts, so that lm-eval ignores num_fewshot=2"),
    ],
)
def test_examples_that_lm_eval_would_leave_out_are_refused(run, tasks, tmp_path, name, settings, says):
    folder = changed(tasks, tmp_path / "changed", name, **settings)
    with pytest.raises(ValueError, match=f"task {name} cannot be run: {says} for it"):
        evaluate.main([f"checkpoint={run}", f"tasks={folder}", "num_fewshot=2"])


FAILS = """
def process_results(doc, results):
    raise {error}
"""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("RuntimeError('no luck')", "RuntimeError: no luck"),
        ("KeyError('q')", "KeyError: 'q'"),
        ("ValueError('one\\ntwo')", "one$"),
    ],
)
def test_a_task_that_fails_while_it_runs_is_named(run, tasks, tmp_path, error, says):
    folder = changed(tasks, tmp_path / "changed", "tiny_lambada")
    (folder / "utils.py").write_text(FAILS.format(error=error))
    with (folder / "tiny_lambada.yaml").open("a") as file:
        file.write("process_results: !function utils.process_results\n")
    with pytest.raises(ValueError, match=f"task tiny_lambada cannot be run: {says}"):
        evaluate.main([f"checkpoint={run}", f"tasks={folder}"])


def test_what_fails_in_the_model_is_not_the_tasks(run, tasks, monkeypatch):
    monkeypatch.setattr("eval.quality.lm_eval_model.largest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.main([f"checkpoint={run}", f"tasks={tasks}"])


def test_unknown_benchmarks_of_a_run_are_found_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="tasks=no/such is not a folder"):
        validate(compose(["eval.every=2", "eval.tasks=[no/such]"]), 1)
    assert not list(tmp_path.iterdir())


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
