"""A run from given weights: what it inherits, which settings must agree, and how it resumes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caat.data.tokenizer import train_tokenizer
from caat.storage.durable import write_json
from caat.training.checkpoint.architecture import Architecture, read_architecture
from caat.training.checkpoint.folder import find
from caat.training.checkpoint.state import read_checksums, write_checksums
from conf.reading.saved import read_config
from conf.rope_scaling import RopeScalingConfig
from launch.convert import main as convert
from launch.run.compose import compose
from launch.run.folder import create_run_folder
from launch.run.validate import validate
from tests.layers.huggingface.llamas import write_llama

TEXT = "\n\n".join(
    f"Document {i} of {i * i % 97}: " + " ".join(f"word{i * j % 41}" for j in range(60)) for i in range(300)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A converted Llama `llama`, text, and prepared tokens of another tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    write_llama(folder / "hf")
    convert([f"from={folder / 'hf'}", f"to={folder / 'llama'}", "parallel.tensor=4"])
    (folder / "own.txt").write_text(TEXT)
    lines = (f"sentence number {i} about {i * i}" for i in range(200))
    train_tokenizer(lines, 300, folder / "other.model")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy for tests that change it."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


RUN = ["initialize=llama", "data.path=own.txt", "parallel.tensor=4", "train.sequence=32"]


def test_model_and_tokenizer_are_taken_over(here):
    config = compose([*RUN, "sync.ratio={0:1,20:0.5}", "parallel.tensor=2"])
    model = config.model
    assert (model.name, model.layers, model.hidden, model.kv_heads) == ("llama", 2, 32, 4)
    assert (model.vocab_size, model.padded_vocab_size, model.rope_base) == (403, None, 5000.0)
    assert config.data.tokenizer == "llama/tokenizer.json" and config.data.vocab_size == 403
    validate(config, 1)
    assert "llama-n2-r1-0.5-s1" in create_run_folder(config).name
    # Settings that agree with the checkpoint may be given.
    validate(compose([*RUN, "model.layers=2", "model.sequence=48", "data.tokenizer=hf/tokenizer.json"]), 1)


def at_half(here: Path, **values) -> None:
    """Change the checkpoint as if it had been trained at ratio 0.5."""
    found = replace(read_architecture(here / "llama"), ratio=0.5, shared_channels=16, **values)
    assert isinstance(found, Architecture)
    checksum = write_json(here / "llama" / "config.json", found.to_json())
    write_checksums(here / "llama", {**read_checksums(here / "llama"), "config.json": checksum})


REFUSED = {
    "nowhere": (["initialize=nowhere"], "initialize=nowhere is not a folder"),
    "no user": (["initialize=~nosuchuser/x"], "initialize=~nosuchuser/x: there is no such user"),
    "a long name": ([f"initialize={'x' * 300}"], "initialize=x.* is too long"),
    "not a checkpoint": (["initialize=hf"], r"config.json has no caat"),
    "another model": (
        ["model=tiny"],
        r"model.layers=4, but initialize=llama holds a model with 2: give model.layers=2, or leave",
    ),
    "another size": (["model.ffn=96"], r"model.ffn=96, but initialize=llama holds a model with 48"),
    "another tokenizer": (
        ["data.tokenizer=other.model"],
        r"other.model differs from .*tokenizer.json, the tokenizer that the weights",
    ),
    "longer sequences": (["train.sequence=65"], r"train.sequence=65 is longer than model.sequence=64"),
    "resume as well": (["resume=llama"], r"resume=llama continues a run and initialize=llama starts one"),
    "N that does not divide": (["parallel.tensor=3"], r"not divisible by parallel.tensor=3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, here):
    settings, says = REFUSED[name]
    with pytest.raises(ValueError, match=says) as error:
        validate(compose([*RUN, *settings]), 1)
    assert len(str(error.value).splitlines()) == 1


def test_resuming_what_was_converted_says_how_to_start(here):
    with pytest.raises(ValueError, match=r"no checkpoint to resume from is intact: .* with initialize=llama"):
        validate(compose(["resume=llama", "data.path=own.txt", "sync.ratio=1", "parallel.tensor=4"]), 1)


def test_the_context_may_be_extended(here):
    """Scaled rotary positions are taken over, or replaced as a whole; only leaving them out is an error."""
    yarn = RopeScalingConfig("yarn", 4.0, 64, beta_fast=16.0)
    linear = ["model.rope_scaling.kind=linear", "model.rope_scaling.factor=2", "model.sequence=128"]
    config = compose([*RUN, *linear, "train.sequence=128"])
    validate(config, 1)
    assert config.model.rope_scaling == RopeScalingConfig("linear", 2.0)
    found = read_architecture(here / "llama")
    at_half(here, model=replace(found.model, rope_scaling=yarn))
    config = compose(RUN)
    assert config.model.rope_scaling == yarn
    validate(config, 1)
    config = compose([*RUN, *linear])
    assert config.model.rope_scaling == RopeScalingConfig("linear", 2.0)
    validate(config, 1)
    with pytest.raises(ValueError, match=r"rope_scaling.kind=none, but initialize=llama holds .* with yarn"):
        validate(compose([*RUN, "model.rope_scaling.kind=none"]), 1)
    # Dynamic scaling begins at the length of the model, so another length is another function.
    at_half(here, model=replace(found.model, rope_scaling=RopeScalingConfig("dynamic", 4.0)))
    validate(compose(RUN), 1)
    with pytest.raises(ValueError, match=r"model.sequence=128, but initialize=llama holds a model with 64"):
        validate(compose([*RUN, "model.sequence=128"]), 1)


def test_with_private_channels_n_is_fixed_and_the_ratio_is_not(here):
    at_half(here)
    validate(compose([*RUN, "sync.ratio=0.25"]), 1)
    # Each shard reads its slice of the padded vocabulary.
    with pytest.raises(ValueError, match=r"padded to 408, .* trained with 404, .*padded_vocab_size=404"):
        validate(compose([*RUN, "model.padded_vocab_size=408"]), 1)
    with pytest.raises(
        ValueError, match=r"parallel.tensor=2, but initialize=llama was trained with 4 shards at"
    ):
        validate(compose([*RUN, "parallel.tensor=2"]), 1)
    at_half(here, private_scale=1.5)
    with pytest.raises(ValueError, match=r"private_scale is 1.0, .* give sync.private_scale=1.5"):
        validate(compose(RUN), 1)
    validate(compose([*RUN, "sync.private_scale=1.5"]), 1)


def command(*settings: str, cwd: Path, status: int = 0, run: Sequence[str] = RUN) -> str:
    argv = [sys.executable, "-m", "launch.pretrain", *run, *settings]
    result = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


SHORT = [
    "train.steps=6",
    "optim.warmup_steps=0",
    "train.eval_sequences=8",
    "checkpoint.every=2",
    "data.validation=0.1",
]


@pytest.mark.slow
def test_runs_from_given_weights(here):
    """One process and two start from the same loss, and resume instead of starting again."""
    scaling = ["model.rope_scaling.kind=linear", "model.rope_scaling.factor=2"]
    schedule = ["sync.ratio={0:1,3:0.5}", *scaling, *SHORT]
    printed = command(*schedule, "run.dir=one", cwd=here)
    assert "starting with the weights of llama" in printed
    assert "sync.ratio 0.5 from step 4 on: validation" in printed
    command(*schedule, "run.dir=two", "launch.processes=2", cwd=here)
    assert losses(here / "two") == pytest.approx(losses(here / "one"), abs=2e-5)
    first = records(here / "one")[0]
    # The first step starts from the given weights, not from those of an untrained model.
    plain = [*scaling, "sync.ratio=1", "parallel.tensor=1", "train.steps=1", "run.dir=plain"]
    command(*SHORT, *plain, cwd=here)
    whole = records(here / "plain")[0]
    for name in ("loss", "validation_loss_before"):
        assert first[name] == pytest.approx(whole[name], abs=1e-5)

    # Killed after step 4, started again with the same command.
    run = here / "one"
    want, saved = losses(run), run / "checkpoints"
    shutil.rmtree(saved / "step-00000006")
    (saved / "latest").write_text("step-00000004\n")
    printed = command(*schedule, "run.dir=one", "resume=auto", cwd=here)
    assert "resumed from" in printed and "starting with the weights" not in printed
    assert losses(run) == want

    # The final checkpoint of a run initialises another run, with the same scaled positions.
    at_the_end = records(run)[-1]["validation_loss"]
    settings = ["initialize=one", "sync.ratio=0.5", "run.dir=on", *SHORT]
    command(*settings, cwd=here)
    assert records(here / "on")[0]["validation_loss_before"] == pytest.approx(at_the_end, abs=1e-6)
    assert read_config(here / "on" / "config.yaml").model.name == "one"
    # The model's second end of a text is kept through initialising, resuming and initialising again.
    assert read_architecture(find(here / "on")).ends == (1, 2)

    # It continues from its own files when the run that it began from is gone.
    (here / "one").rename(here / "elsewhere")
    prepared = sorted((here / "data").iterdir())
    command("run.dir=on", "resume=auto", "train.steps=8", cwd=here, run=())
    assert len(losses(here / "on")) == 8
    assert sorted((here / "data").iterdir()) == prepared, "the text is not tokenised again"


@pytest.mark.slow
def test_bfloat16_does_not_round_the_given_weights(here):
    """After a step too small to change them, the master weights are the given ones."""
    still = ["train.steps=1", "optim.lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0"]
    for stage in (1, 3):
        command(*SHORT, *still, f"zero.stage={stage}", "train.precision=bf16", f"run.dir=s{stage}", cwd=here)
        saved = load_file(here / f"s{stage}/checkpoints/step-00000001/model.safetensors")
        for name, given in load_file(here / "llama/model.safetensors").items():
            assert torch.equal(saved[name], given), name


@pytest.mark.slow
def test_a_damaged_start_is_found(here):
    data = bytearray((here / "llama" / "model.safetensors").read_bytes())
    data[-7] ^= 1
    (here / "llama" / "model.safetensors").write_bytes(data)
    printed = command(*SHORT, "run.dir=run", cwd=here, status=2)
    assert "model.safetensors is damaged" in printed and "Traceback" not in printed


@pytest.mark.slow
def test_a_sweep_over_ratios_and_a_schedule(here):
    argv = [
        sys.executable,
        "-m",
        "launch.pretrain",
        "-m",
        *RUN,
        *SHORT,
        "train.steps=2",
        "hydra.sweep.dir=sweep",
    ]
    result = subprocess.run(
        [*argv, "sync.ratio=0.5,{0:1,1:0.5}"], cwd=here, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ratios = [
        [record["ratio"] for record in records(path.parent)] for path in here.glob("sweep/*/metrics.jsonl")
    ]
    assert sorted(ratios) == [[0.5, 0.5], [1.0, 0.5]]
