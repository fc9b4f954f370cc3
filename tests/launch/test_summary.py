"""The summary of a run: the references for its loss, and missing or damaged input."""

from __future__ import annotations

import json
import shlex
from math import log

import numpy as np
import pytest

from caat.data.prepared import Prepared
from caat.data.shards import read_unigram
from caat.parallel.data_axis import PURPOSES
from caat.parallel.mesh import Mesh
from conf.generate import GenerateConfig
from conf.reading.verb import load_verb
from conf.schema import Config
from launch.command.errors import only_warned
from launch.run import summary
from launch.run.summary import baselines, full_sync_bytes, summarise
from tests.data.conftest import write_shards


@pytest.mark.parametrize(("count", "used"), [(3, 3), (100, 4)])
def test_unigram_model_of_the_validated_targets(tmp_path, count, used):
    tokens = write_shards(tmp_path / "shards", [30, 20], 40, "validation")
    counts = np.random.default_rng(1).integers(1000, size=40)
    np.save(tmp_path / "shards" / "unigram.npy", counts)
    found = baselines(Prepared.of(tmp_path / "shards"), 11, count)
    # Sequences of 11 tokens, with targets shifted by one.
    targets = np.concatenate([tokens[11 * i + 1 : 11 * i + 12] for i in range(used)])
    each = [log((counts[token] + 1) / (counts.sum() + 40)) for token in targets]
    assert found == {"uniform": log(40), "unigram": pytest.approx(-sum(each) / len(each), abs=1e-12)}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "cannot be read (No such file"),
        (lambda path: path.write_bytes(b"\x00" * 400), "cannot be read as a .npy file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "cannot be read as a .npy file"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"(40,)", b"(1" + b"0" * 12 + b",)")),
            "cannot be read as a .npy file",
        ),
        (lambda path: np.save(path, np.zeros(40)), "does not hold the counts of 40 pieces"),
        (lambda path: np.save(path, np.zeros(41, dtype=np.int64)), "does not hold the counts of 40 pieces"),
        (lambda path: np.save(path, np.full(40, -1)), "does not hold the counts of 40 pieces"),
        (lambda path: np.save(path, np.array(["x"] * 40, dtype=object)), "cannot be read as a .npy file"),
    ],
)
def test_counts_that_are_missing_or_damaged(tmp_path, damage, says):
    path = tmp_path / "unigram.npy"
    np.save(path, np.arange(40))
    assert read_unigram(tmp_path, 40).tolist() == list(range(40))
    damage(path)
    with pytest.raises(ValueError, match=r"unigram\.npy.*prepare it again") as error:
        read_unigram(tmp_path, 40)
    assert says in str(error.value)


def test_figures_stand_on_whatever_was_logged(tmp_path, monkeypatch, capsys):
    """Damaged lines, benchmarks and a failing plot are ignored; without any line, the last step counts."""
    monkeypatch.setattr(summary, "plot_loss", lambda *_: 1 / 0)
    step = {"step": 3, "tokens": 48, "loss": 1.0, "validation_loss": 1.5, "ratio": 1.0, "skipped_steps": 0}
    step |= {"tokens_per_second": 8.0, "step_seconds": 2.0, "data_wait_seconds": 1.0}
    step |= {"tensor_parallel_bytes_forward": 0, "tensor_parallel_bytes_backward": 0}
    step |= {f"data_parallel_{what}_{purpose}": 0 for what in ("bytes", "calls") for purpose in PURPOSES}
    for lines, rate in (
        ([], 8.0),
        ([{**step, "tokens_per_second": 4.0}, [1], {"step": 3, "eval/a/b": 1.0}], 4.0),
    ):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b"\xff\n")
        found = summarise(Config(), Mesh(8), step, {"uniform": 3.0, "unigram": 2.0}, tmp_path)
        assert (found["tokens_per_second"], found["data_wait_share"]) == (rate, 0.5)
        assert json.loads((tmp_path / "summary.json").read_text()) == found
        said = capsys.readouterr()
        assert "WARNING: loss.png could not be created (ZeroDivisionError: division by zero)" in said.err
        assert "validation loss  " in said.out
        # The command for the trained model, ready to run.
        use = next(line for line in said.out.splitlines() if line.startswith("use it"))
        verb, *settings = shlex.split(use.removeprefix("use it"))[1:]
        assert verb == "generate" and load_verb(GenerateConfig, settings).checkpoint == str(tmp_path)


def test_bytes_are_means_over_steps_that_may_have_had_other_processes(tmp_path):
    """The run was on one process, which sends nothing, then on two, then on two replicas with more tokens."""
    step = {"tokens": 48, "loss": 1.0, "validation_loss": 1.5, "ratio": 0.5, "skipped_steps": 0}
    step |= {"tokens_per_second": 8.0, "step_seconds": 2.0, "data_wait_seconds": 1.0}
    step |= {f"data_parallel_{what}_{purpose}": 0 for what in ("bytes", "calls") for purpose in PURPOSES}
    config, mesh = Config(), Mesh(8, 2)
    records = []
    for number, (sent, replicas, rate) in enumerate(
        ((0, 1, 8.0), (0, 1, 8.0), (1000, 1, 8.0), (3000, 2, 32.0))
    ):
        more = {"step": number, "data_parallel_bytes_weights": 20 * number}
        more |= {"replicas": replicas, "tokens_per_second": rate}
        records.append(
            step | more | {f"tensor_parallel_bytes_{way}": sent for way in ("forward", "backward")}
        )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    found = summarise(config, mesh, records[-1], {"uniform": 3.0, "unigram": 2.0}, tmp_path)
    fulls = [
        full_sync_bytes(config, mesh, 0.5, {"forward": sent, "backward": sent}, tokens)
        for sent, tokens in ((1000, 16), (3000, 32))
    ]
    full = {way: sum(each[way] for each in fulls) for way in fulls[0]}
    named = found["tensor_parallel_bytes_per_step_full_synchronisation"]
    assert named == {way: round(size / 4) for way, size in full.items()}
    assert found["bytes_saved"] == pytest.approx(1 - 8000 / sum(full.values()), rel=1e-3)
    assert found["data_parallel_bytes_per_step"]["weights"] == 30


def test_what_comes_on_top_of_training_is_a_warning(capsys):
    with only_warned("the figures of run"):
        raise KeyError("tokens")
    assert (
        capsys.readouterr().err
        == "caat: WARNING: the figures of run could not be created (KeyError: 'tokens')\n"
    )
