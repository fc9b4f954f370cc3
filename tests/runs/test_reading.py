"""Run folders read back: complete, cut short or damaged."""

from __future__ import annotations

import json

import pytest

from caat.runs.reading import find_runs
from caat.runs.variants import variants
from launch.run.compose import compose
from tests.runs.folders import write_run

WRONG_LINES = {
    "a list": ("[1]", "holds [1], which must be an object"),
    "a step that is none": ('{"step": null, "tokens": 1}', "has step=null"),
    "no step": ('{"a": 1}', "has no step"),
    "no bytes": (
        '{"step": 1, "tokens": 1, "loss": 1, "step_seconds": 1, "tokens_per_second": 1}',
        "has no tensor",
    ),
    "text for a loss": ('{"step": 1, "tokens": 1, "loss": "1"}', 'has loss="1"'),
    "text for a score": ('{"step": 1, "tokens": 1, "eval/a/b": "1"}', "has eval/a/b='1'"),
    "brackets": ("[" * 100_000, "is not JSON"),
}


def test_bytes_are_means_over_the_steps(tmp_path):
    write_run(tmp_path / "run", compose(["sync.ratio={0:1,1:0.25}"]), [4.0, 3.0, 2.0], sent=1000)
    metrics = tmp_path / "run" / "metrics.jsonl"
    first, *rest = metrics.read_text().splitlines()
    first = first.replace('_bytes_forward": 500', '_bytes_forward": 3500')
    metrics.write_text("\n".join([first, *rest]))
    (run,) = find_runs([str(tmp_path)])[0]
    assert run.bytes_per_step == 2000
    # A ring of four processes sends 1.5 times the size of a message.
    assert run.total_bytes_per_step == 3000 + 2**19 + 2**18
    metrics.write_text(metrics.read_text().replace('"tensor_parallel_processes": 4, ', "", 1))
    (older,) = find_runs([str(tmp_path)])[0]
    assert older.total_bytes_per_step is None


def test_linked_folders_are_searched_too(tmp_path):
    write_run(tmp_path / "scratch" / "run", compose([]), [4.0])
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "linked").symlink_to(tmp_path / "scratch")
    (tmp_path / "outputs" / "linked" / "back").symlink_to(tmp_path / "outputs")
    assert [run.folder.name for run in find_runs([str(tmp_path / "outputs")])[0]] == ["run"]


def test_a_run_that_ended_before_its_last_benchmarks_has_none(tmp_path):
    for status, expected in (("finished", {}), ("stopped", {("news", "bits_per_byte"): 10.0})):
        run = tmp_path / status
        write_run(run, compose([]), [4.0, 3.0], status)
        kept = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        early = json.dumps({"step": 1, "tokens": 1000, "eval/news/bits_per_byte": 10.0})
        (run / "metrics.jsonl").write_text("\n".join([*kept, early]) + "\n")
        ((found,), _) = find_runs([str(run)])
        assert found.scores == expected and found.validation_loss == 3.0


def test_a_last_validation_that_was_not_finite_is_not_an_earlier_one(tmp_path):
    write_run(tmp_path / "run", compose([]), [8.0, 7.0])
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"validation_loss": 7.0', '"validation_loss": null'))
    (run,) = find_runs([str(tmp_path)])[0]
    assert run.validation_loss is None and variants([run]) == []


def test_a_torn_last_line_is_left_out_and_another_named(tmp_path):
    write_run(tmp_path / "killed", compose([]), [8.0, 7.0], status="failed")
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tok')
    runs, _ = find_runs([str(tmp_path)])
    assert [record["step"] for record in runs[0].records] == [1, 2]
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "killed" / "metrics.jsonl").write_text("\n".join([lines[0], "?", lines[1]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not JSON"):
        find_runs([str(tmp_path)])


@pytest.mark.parametrize(("line", "why"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_a_damaged_run_is_a_line_of_the_report(line, why, tmp_path):
    write_run(tmp_path / "good", compose([]), [8.0, 7.0])
    write_run(tmp_path / "bad", compose([]), [8.0, 7.0])
    path = tmp_path / "bad" / "metrics.jsonl"
    path.write_text(line + "\n" + path.read_text())
    runs, (problem,) = find_runs([str(tmp_path)])
    assert [run.folder.name for run in runs] == ["good"] and why in problem.reason


@pytest.mark.parametrize("change", [{"step": 0}, {"validation_loss/web": "abc"}, {"epochs/web": [1]}])
def test_figures_of_another_type_are_a_line_of_the_report(change, tmp_path):
    write_run(tmp_path / "whole", compose(["seed=1"]), [8.0, 7.0])
    write_run(tmp_path / "damaged", compose(["seed=2"]), [8.0, 7.0])
    path = tmp_path / "damaged" / "metrics.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *others]) + "\n")
    runs, problems = find_runs([str(tmp_path)])
    assert [run.folder.name for run in runs] == ["whole"]
    assert next(iter(change)) in problems[0].reason


@pytest.mark.parametrize("status", ["null", "3", "[]", '{"status": 3}'])
def test_a_damaged_status_is_a_line_of_the_report(status, tmp_path):
    write_run(tmp_path / "good", compose([]), [8.0, 7.0])
    write_run(tmp_path / "bad", compose([]), [8.0, 7.0])
    (tmp_path / "bad" / "status.json").write_text(status)
    _, (problem,) = find_runs([str(tmp_path)])
    assert "status.json" in problem.reason
