"""Settings from a file: config=FILE, only FILE.yaml, a run that is resumed, and the user's own options."""

from __future__ import annotations

import re

import pytest

from conf.reading.options import GROUPS, options_in, take_config_dir
from conf.reading.saved import read_config, save_config
from conf.schema import RunConfig
from launch.pretrain import main as pretrain
from launch.run.compose import compose
from launch.run.resume_command import resume_command
from launch.sweep.plan import plan_sweep


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_file_sets_what_the_command_line_does_not(here):
    write(
        here / "mine.yaml",
        """
        model: 130m
        data: {path: 'é/#corpus', subset: 2023_11}
        train: {steps: 50, sequence: 512}
        optim: {warmup_steps: 5}
        sync: {ratio: {0: 1, 20: 0.25}}
        tracker: {name: 1.10, tags: [2024_01, x]}
        parallel:
        resume: auto
        """,
    )
    given = "model=130m data.path=é/#corpus data.subset=2023_11 train.steps=50 train.sequence=512 "
    given += "optim.warmup_steps=5 sync.ratio={0:1,20:0.25} tracker.name=1.10 tracker.tags=[2024_01,x]"
    want = compose(given.split())
    assert compose(["mine.yaml"]) == compose(["config=mine.yaml"]) == want
    assert want.tracker.name == "1.10" and want.model.hidden == 768

    found = compose(["sync.ratio=0.5", "mine.yaml", "train.steps=60"])
    assert (found.sync.ratio, found.train.steps, found.train.sequence) == (0.5, 60, 512)


def test_an_option_on_the_command_line_overrules_what_the_file_sets(here):
    write(here / "mine.yaml", "model: {layers: 2, hidden: 64}\ntrain: {steps: 7}\nsync: {private_scale: 2}\n")
    for given in (["model=tiny"], ["experiment=quickstart"]):
        found, option = compose(["mine.yaml", *given]), compose(given)
        assert (found.model, found.train) == (option.model, option.train)
        assert found.sync.private_scale == 2
    assert compose(["mine.yaml", "sync=full"]).train.steps == 7
    write(here / "quick.yaml", "experiment: quickstart\n")
    assert compose(["quick.yaml"]) == compose(["experiment=quickstart"])
    assert compose(["quick.yaml", "experiment=null"]) == compose(["experiment=null"]) == compose([])


def test_a_runs_own_file_given_back_is_a_new_run_like_it(here):
    first = compose(["model=130m", "train.steps=77", "optim.warmup_steps=3", "run.dir=first", "sync=none"])
    (here / "first").mkdir()
    save_config(first, here / "first" / "config.yaml")
    for given in ("config=first/config.yaml", "config=first", "first/config.yaml"):
        again = compose([given])
        assert again.run == RunConfig() and again.resume == "never"
        again.run = first.run
        assert again == first


def test_a_run_goes_on_with_its_own_settings(here):
    first = compose(["model=130m", "train.steps=77", "optim.warmup_steps=3", "run.dir=first", "sync=none"])
    (here / "first").mkdir()
    save_config(first, here / "first" / "config.yaml")
    again = compose(["run.dir=first", "resume=auto"])
    assert again.resume == "auto"
    again.resume = "never"
    assert again == first
    assert compose(["run.dir=first", "resume=auto", "train.steps=99"]).train.steps == 99
    assert compose(["run.dir=first", "resume=auto", "model=tiny"]).model.name == "tiny"
    # A file comes before what the run was started with, the command line before both.
    write(here / "mine.yaml", "train: {sequence: 128, micro_batch: 2}\nsync: full\n")
    more = compose(["mine.yaml", "run.dir=first", "resume=auto", "train.micro_batch=4"])
    assert (more.train.steps, more.optim.warmup_steps, more.model.name) == (77, 3, first.model.name)
    assert (more.train.sequence, more.train.micro_batch) == (128, 4)
    assert more.sync == compose(["sync=full"]).sync != first.sync
    write(here / "theirs.yaml", "checkpoint: {after: [ls]}\n")
    with pytest.raises(ValueError, match=r"theirs\.yaml runs a command after each save"):
        compose(["theirs.yaml", "run.dir=first", "resume=auto"])
    # Without resume=auto, or in a new folder, it is a new run.
    for other in (["run.dir=first"], ["run.dir=new", "resume=auto"]):
        assert compose(other).model.name == "tiny"


def test_nothing_in_a_file_is_resolved(here, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    write(here / "mine.yaml", "tracker: {name: '${oc.env:SECRET}', group: '\\${oc.env:SECRET}'}\n")
    found = compose(["mine.yaml"])
    assert (found.tracker.name, found.tracker.group) == ("${oc.env:SECRET}", "\\${oc.env:SECRET}")


def test_a_file_sends_nothing_to_an_account_by_itself(here):
    (here / "got").mkdir()
    save_config(compose(["tracker=wandb", "run.dir=got"]), here / "got" / "config.yaml")
    for given in (["config=got"], ["run.dir=got", "resume=auto"]):
        with pytest.raises(ValueError, match=r"got/config.yaml sends its metrics.*give tracker=wandb"):
            compose(given)
        assert compose([*given, "tracker=wandb"]).tracker.wandb == "online"
        assert compose([*given, "tracker=none"]).tracker.wandb == "none"


def test_a_file_loads_no_task_files(here):
    """They may name functions in files beside them."""
    for name in ("got", "tasks"):
        (here / name).mkdir()
    task = f"eval.tasks=[{here / 'tasks'}]"
    save_config(compose(["eval.every=2", task, "run.dir=got"]), here / "got" / "config.yaml")
    for given in (["config=got"], ["run.dir=got", "resume=auto"]):
        with pytest.raises(ValueError, match=r"task files may run code of their own: give eval.tasks="):
            compose(given)
        assert compose([*given, task]).eval.tasks == [str(here / "tasks")]
        assert compose([*given, "eval.tasks=[paper]"]).eval.tasks == ["paper"]


def test_a_file_joins_no_islands(here):
    (here / "got").mkdir()
    own = ["islands.join=other.example:29510", "islands.method=average", "islands.every=5"]
    save_config(compose([*own, "run.dir=got"]), here / "got" / "config.yaml")
    for given in (["config=got"], ["run.dir=got", "resume=auto"]):
        with pytest.raises(ValueError, match=r"exchanges weights with the islands at other.example:29510"):
            compose(given)
        assert compose([*given, own[0]]).islands.join == "other.example:29510"


def test_a_file_starts_no_program(here):
    (here / "got").mkdir()
    save_config(compose(["checkpoint.after=[cp,%p,copy]", "run.dir=got"]), here / "got" / "config.yaml")
    for given in (["got/config.yaml"], ["run.dir=got", "resume=auto"]):
        with pytest.raises(ValueError, match=r"runs a command after each save, \[cp,%p,copy\]: give"):
            compose(given)
        assert compose([*given, "checkpoint.after=[true]"]).checkpoint.after == ["true"]
        assert compose([*given, "checkpoint.after=[]"]).checkpoint.after == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {stepz: 3}", "mine.yaml: train.stepz: there is no setting train.stepz, did you mean train."),
        ("lr: 3", "mine.yaml: lr: there is no setting lr, did you mean optim.lr?"),
        ("model: 2b", "mine.yaml: model: 2b: there is no model 2b, choose one of"),
        ("train: {steps: many}", "mine.yaml: train.steps=many is not a whole number"),
        ("train: {steps: -1}", "train.steps=-1 must be above 0"),
        ("train: 5", "mine.yaml: train: there is no setting train"),
        ("- train", "mine.yaml has no settings"),
        ("seed", "mine.yaml has no settings"),
        ("train: [", "mine.yaml is not YAML"),
        (f"seed: {'1' * 5000}", "mine.yaml is not YAML"),
        (f"optim: {{betas: {'[' * 5000}", "mine.yaml is not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_named(here, text, says):
    write(here / "mine.yaml", text)
    with pytest.raises(ValueError, match=re.escape(says)):
        compose(["mine.yaml"])


def test_one_file_that_is_there(here):
    with pytest.raises(ValueError, match=r"a\.yaml cannot be read \(No such file"):
        compose(["a.yaml"])
    with pytest.raises(ValueError, match=r"config=a\.yaml config=b: only one file of settings is allowed"):
        compose(["a.yaml", "config=b"])
    (here / "latin.yaml").write_bytes(b"tracker: {name: caf\xe9}")
    with pytest.raises(ValueError, match=r"latin\.yaml is not YAML .*utf-8"):
        read_config(here / "latin.yaml")


def test_options_of_ones_own(here, capsys):
    folder = here / "it's mine"
    write(folder / "model" / "mine.yaml", "# @package _global_\nmodel: {name: mine, layers: 3}\n")
    write(folder / "experiment" / "try.yaml", "# @package _global_\ndefaults:\n  - override /model: mine\n")
    before = {group: list(names) for group, names in GROUPS.items()}
    with options_in(str(folder)):
        assert compose(["model=mine"]).model.layers == compose(["experiment=try"]).model.layers == 3
        write(here / "file.yaml", "model: {layers: 2}")
        assert compose(["file.yaml", "experiment=try"]).model.layers == 3
        assert "mine" in GROUPS["model"] and "130m" in GROUPS["model"]
        assert "--config-dir" in resume_command(["model=mine"], here / "run")
    assert before == GROUPS
    assert pretrain(["--config-dir", str(folder), "--cfg", "job", "model=mine"]) == 0
    assert "layers: 3" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        pretrain([f"--config-dir={folder}/none", "model=mine"])
    assert "is not a folder" in capsys.readouterr().err
    assert take_config_dir(["-cd", "x", "seed=2"]) == ("x", ["seed=2"])
    with pytest.raises(ValueError, match="--config-dir needs a folder"):
        take_config_dir(["seed=2", "--config-dir"])


def test_a_sweep_of_a_file(here):
    write(here / "own.txt", "A document.\n\n" * 9)
    write(here / "mine.yaml", "model: {layers: 3}\ndata: {path: own.txt}\ntrain: {steps: 9}\n")
    plan = plan_sweep(["mine.yaml", "sync.ratio=1,0.5"])
    assert [(run.config.model.layers, run.config.sync.ratio) for run in plan.runs] == [(3, 1.0), (3, 0.5)]
    assert all("config=mine.yaml" in run.overrides for run in plan.runs)
    assert plan_sweep(["data.path=own.txt", "sync.ratio=1,0.5"]).folder != plan.folder
