"""Users' mistakes: each gives one line with the value, the rule and the remedy, immediately."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

from launch.pretrain import main
from launch.run.compose import compose
from launch.run.validate import validate

# Settings, number of processes, and what the message must contain: the value and the remedy.
MISTAKES = {
    "ratio above 1": (["sync.ratio=1.5"], 1, ["sync.ratio=1.5", "1 = all"]),
    "ratio below 0": (["sync.ratio=-0.1"], 1, ["sync.ratio=-0.1", "0 = none"]),
    "text for a ratio": (["sync.ratio=half"], 1, ["sync.ratio=half is not a number", "{0:1,1000:0.5}"]),
    "no ratio": (["sync.ratio=null"], 1, ["sync.ratio=None is not a number"]),
    "true for a ratio": (["sync.ratio=true"], 1, ["sync.ratio=True is not a number"]),
    "schedule without a start": (
        ["sync.ratio={5:0.5}"],
        1,
        ["has no entry for step 0: add one", "sync.ratio={0:1,1000:0.5}"],
    ),
    "halves of one sequence": (
        ["sync.halves=true", "train.micro_batch=1"],
        1,
        ["sync.halves=true cannot split train.micro_batch=1", "two sequences or more"],
    ),
    "halves without overlap": (
        ["sync.halves=true", "sync.overlap=false"],
        1,
        ["sync.halves=true has no effect with sync.overlap=false", "leave one of them out"],
    ),
    "no scale": (["sync.private_scale=0"], 1, ["sync.private_scale=0 is neither a positive number nor sqrt"]),
    "text for a scale": (["sync.private_scale=root"], 1, ["sync.private_scale=root is neither", "sqrt"]),
    "schedule of no steps": (["sync.ratio={}"], 1, ["has no entry for step 0"]),
    "schedule by fractions": (
        ["sync.ratio={0:1,0.5:0.5}"],
        1,
        ["an entry for 0.5", "whole number of completed steps"],
    ),
    "schedule below 0": (
        ["sync.ratio={0:1,-5:0.5}"],
        1,
        ["an entry for -5", "whole number of completed steps"],
    ),
    "schedule with a bad ratio": (["sync.ratio={0:1,5:1.5}"], 1, ["sync.ratio=1.5 after 5 steps is outside"]),
    "schedule with text": (["sync.ratio={0:1,5:x}"], 1, ["sync.ratio=x after 5 steps is not a number"]),
    "schedule past the end": (
        ["sync.ratio={0:1,200:0.5}"],
        1,
        ["changes after 200 steps", "train.steps=200", "raise train.steps"],
    ),
    "N not in heads": (["parallel.tensor=16"], 1, ["model.heads=8", "parallel.tensor=16", "choose"]),
    "N not in kv_heads": (["model.kv_heads=4"], 1, ["model.kv_heads=4", "choose a parallel.tensor"]),
    "N not in ffn": (["model.ffn=700"], 1, ["model.ffn=700", "choose a parallel.tensor"]),
    "N not in padding": (["model.padded_vocab_size=4100"], 1, ["padded_vocab_size=4100", "leave it out"]),
    "padding too small": (["model.padded_vocab_size=4000"], 1, ["padded_vocab_size=4000", "only add"]),
    "heads not in hidden": (["model.heads=7"], 1, ["model.heads=7", "model.hidden=256", "whole number"]),
    "an odd head": (["model.head_dim=31"], 1, ["model.head_dim=31 is odd", "pairs of channels"]),
    "a head of nothing": (["model.head_dim=0"], 1, ["model.head_dim=0", "above 0"]),
    "N of 0": (["parallel.tensor=0"], 1, ["parallel.tensor=0", "above 0"]),
    "P not in N": (
        ["parallel.processes=3"],
        3,
        ["parallel.processes=3", "parallel.tensor=8", "every process"],
    ),
    "P not in world": (["parallel.processes=4"], 6, ["6 processes", "parallel.processes=4", "multiple"]),
    "unknown setting": (["sync.ration=0.5"], 1, ["sync.ration=0.5", "did you mean sync.ratio?"]),
    "setting without its group": (["micro_batch=2"], 1, ["micro_batch=2", "did you mean train.micro_batch?"]),
    "added setting": (["+train.stepz=1"], 1, ["+train.stepz=1", "did you mean train.steps?"]),
    "removed setting": (["~sync.ratio"], 1, ["~sync.ratio", "another value"]),
    "unknown model": (["model=2b"], 1, ["model=2b", "1.1b, 130m, 13b, 350m, 3b, 70b, 760m, 7b, 8b, tiny"]),
    "unknown experiment": (["experiment=foo"], 1, ["experiment=foo", "quickstart"]),
    "number for a group": (["sync=0.5"], 1, ["sync=0.5", "full, half, none", "sync.ratio=..."]),
    "text for a number": (["train.steps=many"], 1, ["train.steps=many", "a whole number"]),
    "fraction for a count": (["train.steps=1.5"], 1, ["train.steps=1.5", "a whole number"]),
    "null for a number": (["train.steps=null"], 1, ["train.steps=null", "a whole number"]),
    "number for a list": (["optim.betas=0.9"], 1, ["optim.betas=0.9", "optim.betas=[0.9,0.95]"]),
    "texts for numbers": (["optim.betas=[a,b]"], 1, ["optim.betas=[a,b]", "a list of numbers"]),
    "text for an optional": (["data.workers=x"], 1, ["data.workers=x", "a whole number or null"]),
    "bad syntax": (["optim.lr=a b(c"], 1, ["optim.lr=a b(c", "quote"]),
    "no value": (["sync.ratio"], 1, ["sync.ratio is not how a setting is written", "sync.ratio=..."]),
    "a value apart": (["sync.ratio", "0.5"], 1, ["sync.ratio 0.5 is not how", "give sync.ratio=0.5"]),
    "with dashes": (["--sync.ratio", "0.5"], 1, ["--sync.ratio 0.5 is not how", "give sync.ratio=0.5"]),
    "dashes and =": (["seed=2", "--train-steps=5"], 1, ["--train-steps=5 is not", "give train.steps=5"]),
    "a negative value apart": (["--lr", "-1", "seed=2"], 1, ["--lr -1 is not", "give optim.lr=-1"]),
    "no setting at all": (["half"], 1, ["half is not of the form setting=value", "--help"]),
    "setting of another group": (["train.lr=1"], 1, ["train.lr=1", "did you mean optim.lr?"]),
    "setting of two groups": (["bench.processes=1"], 1, ["did you mean launch.processes?"]),
    "unknown reference": (["data.path=${nowhere}"], 1, ["data.path=${nowhere}", "nowhere"]),
    "several values": (["sync.ratio=1,0.5"], 1, ["sync.ratio=1,0.5", "caat pretrain -m"]),
    "TF32 in bf16": (
        ["train.tf32=true", "train.precision=bf16"],
        1,
        ["train.tf32=true", "train.precision=fp32"],
    ),
    "a command that is not there": (
        ["checkpoint.after=[rklone,copy,%p]"],
        1,
        ["checkpoint.after=[rklone,copy,%p]: there is no program rklone"],
    ),
    "a command with names": (
        ["checkpoint.after={a:1}"],
        1,
        ["checkpoint.after={a:1} is not a list of texts"],
    ),
    "step 0 in a profile": (["train.profile={0:3}"], 1, ["has 0:3: give", "'train.profile={10:13}'"]),
    "profile after the end": (["train.profile={2:300}"], 1, ["has 2:300: give", "from 1 to 200"]),
    "a step to profile": (["train.profile=10"], 1, ["train.profile=10: give a first and a last step"]),
    "unknown documents": (["train.documents=split"], 1, ["train.documents=split", "packed, masked"]),
    "unknown precision": (["train.precision=fp8"], 1, ["train.precision=fp8", "fp32, bf16"]),
    "negative steps": (["train.steps=-1"], 1, ["train.steps=-1", "above 0"]),
    "global batch": (["train.global_batch=18"], 1, ["train.global_batch=18", "micro_batch=4", "change one"]),
    "global batch of replicas": ([], 24, ["train.global_batch=16", "3 data-parallel"]),
    "unknown stage": (["zero.stage=4"], 1, ["zero.stage=4", "0, 1, 2 or 3"]),
    "min_lr above lr": (["optim.min_lr=1"], 1, ["optim.min_lr=1.0", "optim.lr=0.001"]),
    "warm-up above steps": (["optim.warmup_steps=300"], 1, ["optim.warmup_steps=300", "train.steps=200"]),
    "decay inside the warm-up": (
        ["optim.schedule=wsd", "optim.warmup_steps=190"],
        1,
        ["optim.warmup_steps=190", "optim.decay_steps=20", "train.steps=200"],
    ),
    "decay of a cosine": (
        ["optim.decay_steps=20"],
        1,
        ["optim.decay_steps=20", "optim.schedule=cosine", "set optim.schedule=wsd"],
    ),
    "negative clip": (["optim.clip=-1"], 1, ["optim.clip=-1.0", "not be negative"]),
    "unknown optimizer": (["optim.name=adam"], 1, ["optim.name=adam", "adamw, lamb, sgd"]),
    "momentum of 1": (["optim=sgd", "optim.momentum=1"], 1, ["optim.momentum=1.0", "[0, 1)"]),
    "momentum without SGD": (
        ["optim.momentum=0.5"],
        1,
        ["optim.momentum=0.5", "optim.name=adamw", "optim.momentum=0.9", "optim.name=sgd"],
    ),
    "betas of SGD": (
        ["optim=sgd", "optim.betas=[0.9,0.99]"],
        1,
        ["optim.betas=[0.9, 0.99] has no effect with optim.name=sgd", "[0.9, 0.95]", "adamw or lamb"],
    ),
    "eps of SGD": (["optim=sgd", "optim.eps=1e-6"], 1, ["optim.eps=1e-06 has no effect", "optim.eps=1e-08"]),
    "unknown schedule": (["optim.schedule=poly"], 1, ["optim.schedule=poly", "cosine, linear"]),
    "negative eval.every": (["eval.every=-1"], 1, ["eval.every=-1", "0: never"]),
    "no benchmarks": (
        ["eval.tasks=[]"],
        1,
        ["eval.tasks is empty", "eval.tasks=[paper]"],
    ),
    "one benchmark": (
        ["eval.tasks=piqa"],
        1,
        ["eval.tasks=piqa", "eval.tasks=[paper]"],
    ),
    "tasks that are never run": (["eval.tasks=[piqa]"], 1, ["have no effect without eval.every"]),
    "no documents": (["eval.limit=0"], 1, ["eval.limit=0", "above 0"]),
    "unknown device": (["launch.device=tpu"], 1, ["launch.device=tpu", "auto, cpu, cuda"]),
    "sequence of the model": (["train.sequence=512"], 1, ["train.sequence=512", "raise model.sequence"]),
    "run folder below a file": (["run.dir=own.txt/run"], 1, ["run.dir=own.txt/run", "is a file", "another"]),
    "run folder in use": (["run.dir=prepared"], 1, ["run.dir=prepared", "not empty", "new folder"]),
    "run folder not writable": (["run.dir=/proc/x"], 1, ["run.dir=/proc/x"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, folder, monkeypatch):
    settings, world, says = MISTAKES[name]
    monkeypatch.chdir(folder)
    if name == "run folder not writable":
        # For root, the system reports every folder as writable.
        monkeypatch.setattr("os.access", lambda *_: False)
        says = [*says, "is not writable", "another run.dir"]
    check_refused(settings, world, says)


def check_refused(settings: list[str], world: int, says: list[str]) -> None:
    """The settings are refused in one line with all of ``says``, and the current folder stays as it is."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(ValueError) as error:
        validate(compose(settings), world)
    message = str(error.value)
    assert not [part for part in says if part not in message], message
    assert len(message.splitlines()) == 1
    assert sorted(Path.cwd().rglob("*")) == before


def test_what_is_right_passes(folder, monkeypatch):
    monkeypatch.chdir(folder)
    settings = ["data.path=prepared", "model.vocab_size=304", "train.sequence=99", "run.dir=new/run"]
    validate(compose(settings), 4)
    validate(compose(["data.path='own.txt'", "data.tokenizer=own.model"]), 8)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["-m", "sync.ratio=1,1.5"], "sync.ratio=1.5 is outside"),
        (["-m", "sync.ratio=1,x"], "sync.ratio=x is not a number"),
        (["-m", "model=tiny,2b"], "there is no model 2b"),
        (["-m", "sync.ratio=1"], "several values"),
        (["-m", "seed=1,2", "run.dir=here"], "hydra.sweep.dir"),
        (["-m", "sync.ratio=interval(0,1)"], "list the values"),
        (["-m", "seed=1,1"], "given twice"),
        (["-m", "seed=1,2", "resume=outputs/first"], "leave resume out"),
        (["-m", "seed=1,2", "hydra/launcher=submitit"], "submitit"),
        (["-m", "seed=1,2", "hydra/launcher=slurm"], "needs sbatch"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm is for a sweep: give -m"),
        (["+hydra.launcher.exclusive=user"], "is for a sweep"),
        (["hydra.run.dir=here"], "run.dir=..."),
        (["seed=100000000000000000000"], "exceeds 64 bits"),
        (["-m", "hydra.sweep.dir=a,b"], "hydra.sweep.dir applies to all runs"),
        (["-m", "seed=1,2", "hydra/launcher=slrum"], "hydra/launcher=slurm queues the runs"),
        (["-m", "seed=1,2", "hydra.launcher.nodes=2"], "give its options with it"),
        (["-m", "seed=1,2", "hydra.sweep.dri=x"], "hydra.sweep.dri has no effect on -m"),
        (["-m", "seed=1,2", "+run.dir=here"], "run.dir is the folder of a single run"),
        (["-m", "seed=1,2", "launch.device=cuda", "launch.processes=1000"], "a GPU for each of 1000"),
        (["launch.device=cuda", "launch.processes=1000"], "a GPU for each of 1000 processes"),
        (["--cfg", "job", "--resolve", "sync.ratio=7"], "sync.ratio=7 is outside"),
        (["--stepz"], "--stepz is not an option"),
        (
            ["--sync.ratio", "0.5", "-m"],
            "--sync.ratio 0.5 is not how a setting is written",
        ),
        (["--resolve"], "works only with --cfg"),
    ],
)
def test_mistakes_of_a_sweep_are_found_before_its_first_run(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and says in error and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


PYTHON = ["-m", "launch.pretrain"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "launch.pretrain"]


@pytest.mark.parametrize(
    ("start", "settings", "status", "says"),
    [
        (PYTHON, ["sync.ration=0.5"], 2, "did you mean sync.ratio?"),
        (PYTHON, ["launch.processes=3", "parallel.processes=2"], 2, "3 processes cannot be cut"),
        (PYTHON, ["data.path=missing.txt"], 2, "missing.txt does not exist"),
        (PYTHON, ["-m", "sync.ratio=0.5,7"], 2, "sync.ratio=7 is outside"),
        (TORCHRUN, ["sync.ratio=1.5"], 1, "sync.ratio=1.5 is outside"),
    ],
)
def test_a_mistake_ends_the_command(start, settings, status, says, tmp_path):
    started = perf_counter()
    result = subprocess.run(
        [sys.executable, *start, *settings], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    print(f"{perf_counter() - started:.1f} s")
    lines = [line for line in result.stderr.splitlines() if line.startswith("caat: error:")]
    assert result.returncode == status
    assert len(lines) == 1 and says in lines[0], result.stderr
    # torchrun adds a line about the rank that exited.
    assert "Traceback" not in result.stderr.split("torch/distributed/elastic")[0]
    assert "launch/pretrain.py" not in result.stderr
    assert not list(tmp_path.iterdir())
