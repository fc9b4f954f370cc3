"""Checkpoints that a run may resume from: chosen or rejected from small files, before any process starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from caat.data.corpus import data_fingerprint
from caat.data.prepared import Prepared
from caat.training.checkpoint.folder import point_latest_at
from caat.training.checkpoint.state import write_state
from conf.schema import Config
from launch.pretrain import main as pretrain
from launch.run.compose import compose
from launch.run.folder import open_run_folder
from launch.run.resume import (
    check_restartable,
    check_resume,
    check_resume_data,
    checkpoints_to_try,
    continues,
)
from launch.run.validate import validate
from tests.launch.saved_run import ADAMW, AT_200, add_checkpoint, saved_run, steps

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return saved_run(tmp_path / "run")


def test_what_is_tried_and_in_which_order(run):
    assert checkpoints_to_try(compose(["run.dir=run"])) == []
    assert steps(checkpoints_to_try(compose(["run.dir=run", "resume=auto"]))) == [150, 100, 50]
    assert steps(checkpoints_to_try(compose(["resume=run"]))) == [150, 100, 50]
    assert steps(checkpoints_to_try(compose(["resume=run/checkpoints/step-00000100"]))) == [100]
    point_latest_at(run / "checkpoints" / "step-00000100")
    assert steps(checkpoints_to_try(compose(["run.dir=run", "resume=auto"]))) == [100, 50]
    (run / "checkpoints" / "latest").unlink()
    assert steps(checkpoints_to_try(compose(["run.dir=run", "resume=auto"]))) == [150, 100, 50]
    assert checkpoints_to_try(compose(["run.dir=new", "resume=auto"])) == []


def test_a_restart_goes_on_where_the_run_was(run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config = compose(["run.dir=run"])
    assert continues(config) and steps(checkpoints_to_try(config)) == [150, 100, 50]
    # A run resumed from another one starts from there again until it has its own first checkpoint.
    elsewhere = compose(["run.dir=new", "resume=run/checkpoints/step-00000050"])
    assert steps(checkpoints_to_try(elsewhere)) == [50]


def test_a_branch_without_a_save_begins_again_where_it_began(run):
    path = "run/checkpoints/step-00000100"
    assert open_run_folder(compose(["run.dir=branch", f"resume={path}"])) == Path("branch")
    # It dies. Slurm and users then give resume=auto, or the same command.
    for given in ("auto", path):
        config = compose(["run.dir=branch", f"resume={given}"])
        validate(config, 1)
        assert continues(config) and config.resume == path
        assert steps(checkpoints_to_try(config)) == [100]
        open_run_folder(config)
    add_checkpoint(Path("branch"), 120)
    config = compose(["run.dir=branch", "resume=auto"])
    assert config.resume == "auto" and steps(checkpoints_to_try(config)) == [120]
    assert not continues(compose(["run.dir=branch", f"resume={path}"]))


def test_a_checkpoint_of_the_run_under_another_name_is_refused(run):
    (run / "checkpoints" / "step-00000150").rename(run / "checkpoints" / "step-00000150.aside")
    given = "resume=run/checkpoints/step-00000150.aside"
    with pytest.raises(
        ValueError, match=r"lies with the checkpoints of run\.dir=run, .*: rename it to step-"
    ):
        check_resume(compose(["run.dir=run", given]))
    assert checkpoints_to_try(compose(["run.dir=new", given])) == [Path(given.removeprefix("resume="))]


def test_a_setting_that_the_user_did_not_give_is_named_with_its_file(run):
    open_run_folder(compose(["run.dir=wsd", "optim.schedule=wsd", "optim.decay_steps=20"]))
    again = ["run.dir=wsd", "resume=auto", "optim.schedule=cosine"]
    with pytest.raises(
        ValueError,
        match=r"optim\.decay_steps=20 has no effect.* \(optim\.decay_steps comes from wsd/config\.yaml: "
        r"optim\.decay_steps=null leaves it out\)",
    ):
        compose(again)
    assert compose([*again, "optim.decay_steps=null"]).optim.decay_steps is None


def test_the_run_folder_is_used_again(run):
    config = compose(["run.dir=run", "resume=auto", "launch.processes=2"])
    validate(config, 2)
    assert open_run_folder(config) == Path("run")
    assert "processes: 2" in (run / "config.yaml").read_text()
    assert (run / "environment-2.json").is_file()
    open_run_folder(config)
    assert (run / "environment-3.json").is_file()


def test_a_folder_where_a_file_belongs_is_named(run):
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(
        ValueError, match=r"run/metrics\.jsonl is a folder, where a run keeps a file: move it"
    ):
        open_run_folder(compose(["run.dir=run", "resume=auto"]))


def test_where_nothing_is_private_the_padding_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add_checkpoint(tmp_path / "run", 50, "sync.ratio=1")
    validate(compose(["resume=run", "sync.ratio=1", "model.padded_vocab_size=4104"]), 1)


def test_restarts_of_caat_are_none_of_torchrun(run):
    with pytest.raises(ValueError, match=r"launch.max_restarts=2 .* give torchrun --max-restarts"):
        check_restartable(compose(["run.dir=run", "resume=auto", "launch.max_restarts=2"]))


def test_a_new_run_from_another_ones_checkpoint(run):
    config = compose(["run.dir=other", "resume=run"])
    validate(config, 1)
    assert not continues(config)
    assert open_run_folder(config) == Path("other")


REFUSED = {
    "no folder for auto": (["resume=auto", "run.dir=null"], ["resume=auto needs run.dir"]),
    "no such path": (["resume=nowhere"], ["resume=nowhere is not a folder", "never, auto"]),
    "nothing in it": (["resume=empty"], ["empty holds no checkpoint"]),
    "folder without resume": (["run.dir=run"], ["run.dir=run", "give resume=auto"]),
    "another N": (
        ["resume=run", "parallel.tensor=4"],
        ["parallel.tensor=4", "trained with 8 shards at sync.ratio=0.5", "Give parallel.tensor=8"],
    ),
    "another ratio": (["resume=run", "sync.ratio=0.25"], ["sync.ratio=0.25", "trained at 0.5", "give"]),
    "another padding": (
        ["resume=run", "model.padded_vocab_size=4104"],
        ["padded to 4104", "trained with 4096", "give model.padded_vocab_size=4096"],
    ),
    "another scale": (["resume=run", "sync.private_scale=sqrt"], ["private_scale is 2.8", "give"]),
    "another model": (["resume=run", "model.layers=2"], ["model.layers=2", "a model with 4", "give"]),
    "another head size": (
        ["resume=run", "model.head_dim=64"],
        ["model.head_dim=64", "a model with 32", "give model.head_dim=32"],
    ),
    "other norms": (
        ["resume=run", "model.qk_norm=true"],
        ["model.qk_norm=True", "a model with False", "give model.qk_norm=False"],
    ),
    "another scaling": (
        ["resume=run", "model.rope_scaling.kind=linear", "model.rope_scaling.factor=2"],
        ["model.rope_scaling.kind=linear", "a model with none", "give model.rope_scaling.kind=none"],
    ),
    "another length": (["resume=run", "train.sequence=128"], ["train.sequence=128", "256"]),
    "another seed": (["resume=run", "seed=2"], ["seed=2", "Give seed=1"]),
    "another optimizer": (
        ["resume=run", "optim=sgd"],
        ["optim.name=sgd", "holds the state of adamw", "give optim.name=adamw", "initialize=run/checkpoints"],
    ),
    "no steps left": (["resume=run", "train.steps=150"], ["has done 150 steps", "give more steps"]),
    "endless minutes": (["checkpoint.minutes=inf"], ["checkpoint.minutes=inf", "finite"]),
    "negative minutes": (["checkpoint.minutes=-1"], ["checkpoint.minutes=-1", "0: not by time"]),
    "negative keep": (["checkpoint.keep=-1"], ["checkpoint.keep=-1", "0: keep all"]),
    "negative keep_every": (["checkpoint.keep_every=-1"], ["checkpoint.keep_every=-1", "0: none"]),
    "keep_every of no save": (
        ["checkpoint.keep_every=6", "checkpoint.every=4"],
        ["checkpoint.keep_every=6 keeps only what is saved", "set checkpoint.every to it or to a divisor"],
    ),
    "keep_every of all": (["checkpoint.keep_every=6", "checkpoint.keep=0"], ["checkpoint.keep=0 keeps all"]),
    "unknown on_failure": (["checkpoint.on_failure=panic"], ["checkpoint.on_failure=panic", "warn, stop"]),
    "unknown on_damage": (["checkpoint.on_damage=x"], ["checkpoint.on_damage=x", "previous, stop"]),
    "no time to hang": (["launch.hang_seconds=0"], ["launch.hang_seconds=0", "above 0"]),
    "negative restarts": (["launch.max_restarts=-1"], ["launch.max_restarts=-1"]),
    "negative interval": (["train.check_replicas_every=-1"], ["check_replicas_every=-1", "0: never"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, run):
    settings, says = REFUSED[name]
    Path("empty").mkdir()
    with pytest.raises(ValueError) as error:
        validate(compose(settings), 1)
    assert not [part for part in says if part not in str(error.value)], str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_may_change(run):
    """Layout, schedule length, precision and batch affect neither the function nor the order of the data."""
    settings = ["resume=run", "zero.stage=3", "parallel.processes=2", "train.global_batch=32"]
    settings += ["train.precision=bf16", "train.steps=300", "optim.lr=1e-4", "optim.min_lr=0"]
    state = check_resume(compose(settings))
    assert state is not None and state.step == 150


def test_the_longest_sequence_is_free_except_where_dynamic_scaling_begins_there(run):
    assert check_resume(compose(["resume=run", "model.sequence=512"])) is not None
    # The default, as a number.
    assert check_resume(compose(["resume=run", "model.head_dim=32"])) is not None
    dynamic = ["model.rope_scaling.kind=dynamic", "model.rope_scaling.factor=2"]
    add_checkpoint(Path("scaled"), 20, *dynamic)
    assert check_resume(compose(["resume=scaled", *dynamic])) is not None
    with pytest.raises(ValueError, match=r"model.sequence=512, but .* with 256: give model.sequence=256"):
        check_resume(compose(["resume=scaled", *dynamic, "model.sequence=512"]))


def test_a_schedule_must_have_come_to_the_ratio_of_the_checkpoint(run):
    """The checkpoints have ratio 0.5; the last one is after step 150."""
    for schedule in ("{0:0.5}", "{0:1,10:0.5}", "{0:1,149:0.5}", "{0:0.5,150:0.25}"):
        assert check_resume(compose(["resume=run", f"sync.ratio={schedule}"])) is not None
    for schedule in ("{0:1,150:0.5}", "{0:0.5,149:0.25}"):
        with pytest.raises(
            ValueError, match=r"in step 150, but .* was trained at 0.5, .* give sync.ratio=0.5"
        ):
            check_resume(compose(["resume=run", f"sync.ratio={schedule}"]))


def test_at_ratio_one_n_may_change(run):
    add_checkpoint(Path("full"), 20, "sync.ratio=1")
    assert check_resume(compose(["resume=full", "sync.ratio=1", "parallel.tensor=2"])) is not None


def test_other_data_is_refused(run):
    tokens = Path("tokens")
    tokens.mkdir()
    index = {"format": "caat-tokens", "version": 1, "key": "0", "source": "", "dtype": "uint16"}
    index |= {"vocab_size": 300, "bos": 1, "eos": 2, "documents": 2, "bytes": 9}
    index |= {"train": [{"file": "a", "tokens": 900}], "validation": [{"file": "c", "tokens": 100}]}
    (tokens / "index.json").write_text(json.dumps(index))
    (tokens / "tokenizer.model").write_bytes(b"x")
    config: Config = compose(["resume=run"])
    with pytest.raises(ValueError, match="trained with a different text or tokenizer"):
        check_resume_data(config, Prepared.of(tokens))
    same = replace(AT_200, step=150, data=data_fingerprint(tokens))
    write_state(run / "checkpoints/step-00000150", same, ADAMW, {})
    assert check_resume_data(config, Prepared.of(tokens)) == same
    (tokens / "index.json").write_text(json.dumps({**index, "key": "prepared elsewhere"}))
    assert check_resume_data(config, Prepared.of(tokens)) == same
    (tokens / "tokenizer.model").write_bytes(b"y")
    with pytest.raises(ValueError, match="different text or tokenizer"):
        check_resume_data(config, Prepared.of(tokens))


def test_two_jobs_cannot_work_in_one_folder(run, capsys):
    """However the first job ends, even by `kill -9`, the next one can start."""
    code = (
        "from launch.run.compose import compose; from launch.run.folder import open_run_folder; import time;"
        "open_run_folder(compose(['run.dir=run', 'resume=auto'])); print('claimed', flush=True);"
        "time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"claimed\n"
        with pytest.raises(ValueError, match=r"another job is using run\.dir=run"):
            open_run_folder(compose(["run.dir=run", "resume=auto"]))
        with pytest.raises(SystemExit, match="2"):
            pretrain(["--queued-run", "run"])
        assert "another job is using run.dir=run" in capsys.readouterr().err
    finally:
        other.kill()
        other.wait()
    open_run_folder(compose(["run.dir=run", "resume=auto"]))
