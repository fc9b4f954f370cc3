"""Trackers: what they keep is read back from their files, and losing one never stops training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import wandb

from caat.data.tokenizer import load_tokenizer, train_tokenizer
from caat.training.trackers import open_trackers
from caat.training.trackers.jsonl import JsonLines
from caat.training.trackers.samples import CONTINUATION, Samples
from caat.training.trackers.tracker import Guarded, Tracker
from caat.training.trackers.wandb_run import default_group
from launch.run.compose import compose
from tests.wandb_file import values, wandb_history, wandb_records

TEXT = [f"The quick brown fox number {i} jumps over {i * i} lazy dogs." for i in range(400)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(iter(TEXT), 320, path)
    return path


def record(step: int) -> dict:
    return {"step": step, "tokens": 100 * step, "loss": 5.0 - step, "validation_loss": 4.0, "mfu": None}


def samples(tokenizer: Path, length: int = 48):
    """One sample of real text whose i-th token has the loss i."""
    text = torch.tensor(load_tokenizer(tokenizer).encode(" ".join(TEXT))[: length + 1])
    seen = Samples(tokenizer, 1)
    for _ in range(2):
        seen.see(text[None, :-1], text[None, 1:], torch.arange(float(length))[None])
    return text, seen.take()


def test_samples_show_each_token_with_its_own_loss(tokenizer):
    text, (sample,) = samples(tokenizer)
    processor = load_tokenizer(tokenizer)
    assert sample.continuation == processor.decode(text[-CONTINUATION:].tolist())
    assert sample.context == processor.decode(text[:-CONTINUATION].tolist())
    # The loss at place i is that of token i + 1: the last token has the last loss.
    assert sample.losses == tuple(float(i) for i in range(48 - CONTINUATION, 48))
    assert sample.loss == pytest.approx(sum(sample.losses) / CONTINUATION)
    assert [piece.replace("_", "\u2581") for piece in sample.pieces] == [
        processor.id_to_piece(number) for number in text[-CONTINUATION:].tolist()
    ]


def test_samples_are_the_first_of_each_validation(tokenizer):
    seen = Samples(tokenizer, 3)
    batch = torch.arange(300, 310).expand(2, 10)
    for _ in range(2):
        for _ in range(4):
            seen.see(batch, batch, torch.zeros(2, 10))
        assert len(seen.take()) == 3


class Broken(Tracker):
    def log(self, record):
        raise OSError("the network\nis gone")

    def close(self, summary):
        raise OSError("still gone")


def test_a_tracker_that_fails_is_a_warning(capsys):
    def not_made() -> Tracker:
        raise RuntimeError("no server")

    for make in (Broken, not_made):
        tracker = Guarded("Somebody", make)
        tracker.log(record(1))
        tracker.log(record(2))
        tracker.close({})
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "caat: WARNING: Somebody fails (the network is gone); training continues",
        "caat: WARNING: Somebody fails (no server); training continues",
    ]


@pytest.mark.parametrize("damaged", [b"[1]", b'{"a":1}', b'{"step":null}', b"\xff\xfe", b"[" * 10**5, b"3"])
def test_damaged_lines_are_left_out_and_kept_aside(tmp_path, capsys, damaged):
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 1}\n' + damaged + b'\n{"step": 2}\n{"step": 3}\n{"st'
    path.write_bytes(before)
    lines = JsonLines(path, 2)
    lines.log({"step": 3})
    lines.close({})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert (tmp_path / "metrics-aside-1.jsonl").read_bytes() == before
    assert "damaged are left out (1)" in capsys.readouterr().err


def test_what_an_earlier_start_logged_without_saving_is_kept(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        JsonLines(path, 0, first=True).log({"step": number})
    JsonLines(path, 0, first=True)
    assert path.read_text() == ""
    for number in (1, 2):
        assert json.loads((tmp_path / f"metrics-aside-{number}.jsonl").read_text()) == {"step": number}
    assert "training begins at step 1" in capsys.readouterr().err
    # A run that branches off another one at step 7.
    path.write_text('{"step": 8}\n')
    JsonLines(path, 7, first=True)
    assert json.loads((tmp_path / "metrics-aside-3.jsonl").read_text()) == {"step": 8}
    assert "left no checkpoint, and training begins at step 8" in capsys.readouterr().err


def test_scores_added_to_a_run_that_was_killed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    for _ in range(2):
        lines = JsonLines(path, None)
        lines.log({"step": 1, "eval/a/b": 0.5})
        lines.close({})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1}, {"step": 1, "eval/a/b": 0.5}, {"step": 1, "eval/a/b": 0.5}
    ]  # fmt: skip


def test_wandb_offline(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "sweeps" / "friday" / "sync.ratio-0.25"
    folder.mkdir(parents=True)
    settings = [
        "tracker=wandb_offline",
        "sync.ratio=0.25",
        "parallel.tensor=4",
        "tracker.tags=[mine]",
        "seed=7",
    ]
    trackers = open_trackers(compose(settings), folder, (0, 0))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "report.html").write_text("<p>report</p>")
    for step in (1, 2):
        for tracker in trackers:
            tracker.log(record(step))
    for tracker in trackers:
        tracker.samples(record(2), samples(tokenizer)[1])
        tracker.keep("report", kept)
        tracker.close({"validation_loss": 4.0, "bytes_saved": 0.75})

    # The end of a run does not wait for its file; the end of wandb's own process does.
    wandb.teardown()
    assert "caat: WARNING" not in capsys.readouterr().err
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.display_name, run.run_group, run.project) == ("sync.ratio-0.25", "friday", "caat")
    assert list(run.tags) == ["ratio-0.25", "N-4", "mine"]
    config = values(run.config.update)
    assert (config["sync"]["ratio"], config["seed"]) == (0.25, 7)
    metrics = {r.metric.name or r.metric.glob_name: r.metric for r in records if r.HasField("metric")}
    assert metrics["*"].step_metric == "tokens" and metrics["validation_loss"].step_metric == "tokens"
    history = [row for row in wandb_history(file) if "loss" in row]
    assert [(row["tokens"], row["loss"]) for row in history] == [(100, 4.0), (200, 3.0)]
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"][0] == "tokens" and rows["data"][0][0] == 200
    summaries = [values(r.summary.update) for r in records if r.HasField("summary")]
    assert any(summary.get("bytes_saved") == 0.75 for summary in summaries)


def test_tensorboard_drops_what_a_resumed_run_does_again(tokenizer, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = compose(["tracker=tensorboard"])
    # Killed before its first checkpoint, begun again, killed, resumed.
    for done, steps in ((0, (1, 2, 3)), (0, (1, 2, 3)), (2, (3, 4))):
        for tracker in open_trackers(config, tmp_path, (done, 100 * done), first=done == 0):
            for step in steps:
                tracker.log(record(step))
            tracker.samples(record(steps[-1]), samples(tokenizer)[1])
            tracker.close({})
    for tracker in open_trackers(config, tmp_path, None):
        tracker.log({"step": 4, "tokens": 400, "eval/piqa/acc": 0.5})
        tracker.close({})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (100, 4.0), (200, 3.0), (300, 2.0), (400, 1.0)
    ]  # fmt: skip
    assert "mfu" not in board.Tags()["scalars"]
    assert "validation_sample_0/text_summary" in board.Tags()["tensors"]
    assert [event.value for event in board.Scalars("eval/piqa/acc")] == [0.5]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 4]


def test_runs_of_no_sweep_go_by_their_model(tmp_path):
    config = compose(["model=130m"])
    assert default_group(config, tmp_path / "outputs" / "run") == "130m"
    assert default_group(config, tmp_path / "sweeps" / "friday" / "run") == "friday"


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    tracker = JsonLines(path, 2)
    tracker.log({"step": 3, "loss": 1.0})
    tracker.close({})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'
