"""Configurations: to a file and back, to a run folder, and into the settings of the verbs."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest

from conf.convert import ConvertConfig
from conf.generate import GenerateConfig
from conf.reading.saved import read_config, save_config
from conf.reading.verb import defaults, load_verb
from conf.schema import Config, RunConfig
from conf.score import ScoreConfig
from conf.tokenize import TokenizeConfig
from launch.run.compose import compose
from launch.run.folder import create_run_folder
from launch.run.warmup import _note


def test_a_configuration_survives_its_file(tmp_path):
    config = compose(["model=1.1b", "sync.ratio=0.3", "tracker.tags=[a,b]", "data.path='/a b/c=(d).txt'"])
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    with pytest.raises(FileExistsError):
        save_config(config, tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "2024_01",
        "1e3",
        "true",
        "1.10",
        "null0",
        "~/corpus",
        "é/ü",
        "a#b&c",
        "(a)[b]{c}",
        "it's",
        "a=b",
        " a ",
        "x\\",
    ],
)
def test_text_is_taken_as_it_was_typed(text):
    settings = ("run.dir", "data.path", "data.text_field", "data.subset", "tracker.name")
    config = compose([f"{name}={text}" for name in settings])
    assert [attrgetter(name)(config) for name in settings] == [text] * len(settings)
    assert load_verb(TokenizeConfig, [f"data.path={text}"]).data.path == text


def test_the_options_of_a_codec_are_part_of_its_name():
    for codec in (
        "topk:0.01,index=bitmap",
        "randomk:0.1,index=bloom:0.01,values=int8",
        "threshold:1,values=poly",
    ):
        assert compose([f"data_sync.codec={codec}"]).data_sync.codec == codec


def test_lists_of_text_too():
    assert compose(["tracker.tags=[2024_01,1.10,b c]"]).tracker.tags == ["2024_01", "1.10", "b c"]
    given = ["checkpoint=x", "prompt=x", "stop=[1.10,2024_01]"]
    assert load_verb(GenerateConfig, given).stop == ["1.10", "2024_01"]


def test_nothing_in_a_file_is_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    save_config(compose([r"tracker.name=\${oc.env:SECRET}"]), tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml").tracker.name == "${oc.env:SECRET}"
    received = (tmp_path / "config.yaml").read_text().replace("\nseed: 1", "\nseed: ${oc.env:SECRET}")
    (tmp_path / "config.yaml").write_text(received)
    with pytest.raises(ValueError, match=r"config.yaml: seed=.*oc\.env.*is not a whole number"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("settings", "warmup"),
    [
        (["train.steps=6"], 1),
        (["train.steps=1"], 1),
        (["train.steps=1", "optim.schedule=wsd"], 0),
        (["model=130m", "train.steps=500"], 50),
        (["model=130m", "train.steps=2000"], 2000),
        (["model=130m", "train.steps=2100", "optim.schedule=wsd"], 210),
        (["experiment=ablation", "train.steps=40"], 4),
    ],
)
def test_a_warm_up_that_nobody_asked_for_fits_the_steps(settings, warmup, capsys):
    _note.cache_clear()
    config = compose(settings)
    assert config.optim.warmup_steps == warmup
    config.check_layout(8)
    assert ("note: optim.warmup_steps is" in capsys.readouterr().err) == (warmup != 2000)


def test_a_warm_up_of_the_users_own_is_refused_where_it_does_not_fit():
    with pytest.raises(ValueError, match=r"optim.warmup_steps=7 is more than train.steps=6"):
        compose(["train.steps=6", "optim.warmup_steps=7"]).check_layout(1)


def test_a_schedule_of_the_ratio(tmp_path):
    config = compose(["sync.ratio={1000:0.5,0:1}", "train.steps=5000"])
    assert config.sync.schedule == {0: 1.0, 1000: 0.5}
    assert [config.sync.ratio_of(step) for step in (1, 1000, 1001, 5000)] == [1.0, 1.0, 0.5, 0.5]
    assert config.sync.describe_ratio() == "1 (0.5 after 1000 steps)"
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    number = compose(["sync.ratio=1"])
    assert number.sync.schedule == {0: 1.0} and number.sync.describe_ratio() == "1"


def test_a_schedule_takes_the_place_of_an_experiments():
    """Hydra by itself would merge the two."""
    assert compose(["experiment=uptrain"]).sync.schedule == {0: 1.0, 4: 0.5}
    assert compose(["experiment=uptrain", "sync.ratio={0:1,20:0.25}"]).sync.schedule == {0: 1.0, 20: 0.25}
    assert compose(["experiment=uptrain", "sync.ratio=0.5"]).sync.schedule == {0: 0.5}


def test_a_mixture_takes_the_place_of_another(tmp_path, monkeypatch):
    """A source must not stay because it is not named again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.yaml").write_text(
        "data: {mixture: {web: 0.6, code: 0.3, wiki: 0.1}, sources: {web: a.txt, code: b.txt, wiki: c.txt}}"
    )
    given = ["data.mixture={web:1,books:1}", "data.sources={web:a.txt,books:d.txt}"]
    for settings in (given, ["config=three.yaml", *given]):
        config = compose(settings)
        assert config.data.mixture == {"web": 1, "books": 1}
        assert config.data.sources == {"web": "a.txt", "books": "d.txt"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sync: {ratio: 2}", "sync.ratio=2 is outside"),
        ("sync: {ration: 1}", "not a configuration of this version"),
        ("seed: [", "is not YAML"),
        ("seed: !!python/object/apply:os.system [touch pwned]", "is not YAML"),
        ("- 1", "not a configuration of this version"),
    ],
)
def test_a_broken_file_is_refused_and_not_executed(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_config(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "prompt", ["x ${checkpoint} y", "${oc.env:HOME}", r"a \${b} \\${c}", "${", r"C:\d", "$x"]
)
def test_text_stays_as_it_was_typed(prompt):
    assert load_verb(GenerateConfig, ["checkpoint=ck", f"prompt={prompt}"]).prompt == prompt


def test_the_defaults_shown_are_those_that_are_used():
    for schema, used in ((Config, compose([])), (TokenizeConfig, load_verb(TokenizeConfig, []))):
        for name, setting in defaults(schema).items():
            assert attrgetter(setting.field)(used) == setting.default, name


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give a run folder"):
        read_config(tmp_path / "config.yaml")


def test_run_folders_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    config = compose(["sync.ratio=0.25", "seed=7"])
    folders = [create_run_folder(config) for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.parent == Path("outputs") for folder in folders)
    assert folders[0].name.endswith("-tiny-n8-r0.25-s7")
    assert read_config(folders[2] / "config.yaml") == config
    environment = (folders[0] / "environment.json").read_text()
    assert "hunter2" not in environment
    assert json.loads(environment)["packages"]["torch"]


def test_a_given_run_folder_is_made_or_empty(tmp_path):
    config = compose([])
    config = replace(config, run=RunConfig(dir=str(tmp_path / "a" / "b")))
    assert create_run_folder(config) == tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="not empty"):
        create_run_folder(config)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be created"):
        create_run_folder(replace(config, run=RunConfig(dir=str(tmp_path / "file" / "run"))))


def test_a_verb_takes_groups_and_settings():
    config = load_verb(TokenizeConfig, ["data.vocab_size=500", "out=/a b/c=(d), e", "data.path=null"])
    assert (config.out, config.data.vocab_size, config.data.path) == ("/a b/c=(d), e", 500, None)
    # The same default as in `caat pretrain`, so that both use the same text.
    assert config.data.validation == compose([]).data.validation
    # In either order, the setting overrides the option.
    config = load_verb(TokenizeConfig, ["data.validation=0.5", "data=fineweb_edu"])
    assert (config.data.subset, config.data.validation) == ("sample-10BT", 0.5)


@pytest.mark.parametrize(
    ("schema", "argv", "says"),
    [
        (ScoreConfig, [], "checkpoint is required: give checkpoint=..."),
        (ScoreConfig, ["checkpoint"], "checkpoint is not how a setting is written: give checkpoint=..."),
        (ScoreConfig, ["chekpoint=x"], "did you mean checkpoint?"),
        (TokenizeConfig, ["data.workers=many"], "data.workers=many is not a whole number or null"),
        (TokenizeConfig, ["data=wikipedia"], "choose one of fineweb_edu, quickstart"),
        (TokenizeConfig, ["data.validation=1.5"], "data.validation=1.5 is outside"),
        (TokenizeConfig, ["data.vocab_size=[1"], "data.vocab_size=[1 is not a whole number"),
    ],
)
def test_mistakes_in_a_verb(schema, argv, says):
    with pytest.raises(ValueError) as error:
        load_verb(schema, argv)
    assert says in str(error.value)


def test_a_setting_named_like_a_keyword(capsys):
    config = load_verb(ConvertConfig, ["from=a", "to=b", "sync.ratio=0.5", "parallel.tensor=3"])
    assert (config.from_, config.to, config.sync.ratio, config.parallel.tensor) == ("a", "b", 0.5, 3)
    with pytest.raises(ValueError, match="from is required: give from="):
        load_verb(ConvertConfig, ["to=b"])
    with pytest.raises(SystemExit):
        load_verb(ConvertConfig, ["--help"])
    assert "  from=required\n      Hugging Face folder" in capsys.readouterr().out


def test_the_help_of_a_verb_lists_its_settings(capsys):
    with pytest.raises(SystemExit) as end:
        load_verb(TokenizeConfig, ["--help"])
    printed = capsys.readouterr().out
    assert not end.value.code
    assert "data: one of fineweb_edu, quickstart" in printed
    assert "data.vocab_size=32000" in printed
    assert "Folder for prepared token shards." in printed
