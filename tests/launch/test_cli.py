"""The command `caat`: fast help, verbs, and how errors end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from caat.parallel.world import check_launcher
from launch import cli
from launch.command import errors
from launch.run.compose import compose

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "deepspeed", "datasets", "hydra", "numpy"}


def caat(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["caat", *argv])
    return cli.main()


@pytest.mark.parametrize("verb", sorted(set(cli.VERBS) - {"pretrain", "bench"}))
def test_every_verb_says_what_may_be_set(verb, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ending:
        caat(monkeypatch, verb, "--help")
    printed = capsys.readouterr()
    assert ending.value.code == 0 and printed.err == ""
    result = {"convert": "to", "islands": "port"}.get(verb, "out")
    assert f"`caat {verb}" in printed.out and f"\n  {result}=" in printed.out


@pytest.mark.parametrize("verb", ["generate", "report"])
def test_a_reader_that_goes_away_is_no_traceback(verb):
    command = f"'{sys.executable}' -m launch.{verb} --help | head -c 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, check=False)
    assert (result.returncode, result.stderr) in ((141, b""), (0, b""))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['caat', '--help']; from launch import cli; cli.main(); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *printed, modules = result.stdout.splitlines()
    assert not HEAVY & set(modules.split())
    assert "  pretrain   train a model" in "\n".join(printed)


def test_validation_does_not_import_torch(tmp_path):
    code = (
        "import sys; from launch.pretrain import validate, compose; validate(compose(['model=7b']), 8);"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not {"torch", "deepspeed", "datasets"} & set(result.stdout.split())


def test_help_of_pretrain(tmp_path):
    command = [sys.executable, "-m", "launch.pretrain", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    for part in ("usage: caat pretrain", "sync.ratio=F", "model: 1.1b, 130m, 13b, 350m", "examples:"):
        assert part in result.stdout
    assert not list(tmp_path.iterdir())


def test_the_configuration_shown_is_the_one_that_would_be_trained(monkeypatch, capsys):
    settings = ["experiment=uptrain", "sync.ratio={0:1,10:0.25}"]
    for flags in (["--cfg", "job"], ["-c", "job"], ["--cfg=job"]):
        assert caat(monkeypatch, "pretrain", *flags, *settings) == 0
        shown = OmegaConf.create(capsys.readouterr().out)
        assert shown == OmegaConf.structured(compose(settings))
    with pytest.raises(SystemExit):
        caat(monkeypatch, "pretrain", "--cfg", "job", "sync.ratoi=1")
    assert "did you mean sync.ratio?" in capsys.readouterr().err


def test_version(monkeypatch, capsys):
    assert caat(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("caat 0.")


def test_an_unknown_verb(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        caat(monkeypatch, "pretain")
    assert end.value.code == 2
    assert capsys.readouterr().err == "caat: error: pretain is not a verb of caat: did you mean pretrain?\n"


def test_a_mistake_in_a_verb_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        caat(monkeypatch, "tokenize", "data.path=missing.txt")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("caat: error: data.path=missing.txt does not exist")


def test_only_our_own_value_errors_are_the_users_mistakes(capsys):
    with pytest.raises(SystemExit), errors.user_errors():
        from conf.checks import require

        require(False, "one\nline")
    assert capsys.readouterr().err == "caat: error: one line\n"
    # An error raised in a library is our bug: the traceback must be shown.
    with pytest.raises(ValueError, match="0 is not in range"), errors.user_errors():
        import ipaddress

        raise_from_library = ipaddress.ip_address
        raise_from_library("0 is not in range")


def test_a_path_that_may_not_be_read_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, errors.user_errors():
        raise PermissionError(13, "Permission denied", "/home/other/text.jsonl")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("caat: error: /home/other/text.jsonl: permission denied: check")


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    with errors.user_errors():
        print("naïve \ud83d 日")
    assert terminal.buffer.getvalue() == rb"na\xefve \ud83d \u65e5" + b"\n"


def test_a_closed_stream_is_none_of_a_verbs_business(tmp_path):
    """Standard output is closed, as in `caat plan >&-`; files opened later must not receive the output."""
    code = "import launch, os; print('x'); assert os.open('file', os.O_CREAT) > 2"
    for closed in (">&-", "<&- >&-", "<&- >&- 2>&-"):
        command = f'{sys.executable} -c "{code}" {closed} && {sys.executable} -m launch.cli plan {closed}'
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True)
        assert (ended.returncode, ended.stderr) == (0, b""), ended.stderr
        assert (tmp_path / "file").read_bytes() == b""


def test_a_folder_that_was_deleted_is_named(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(SystemExit) as end, errors.user_errors():
        pass
    assert end.value.code == 2
    assert capsys.readouterr().err == "caat: error: the current folder was deleted: cd to another one\n"


def test_processes_of_another_launcher_do_not_train_alone(monkeypatch):
    """By mpirun or srun, each would be a run of its own."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="OMPI_COMM_WORLD_SIZE=4: this is one of 4 processes"):
        check_launcher.__wrapped__()


def test_other_ranks_let_rank_0_speak_first(monkeypatch, capsys):
    slept: list[float] = []
    monkeypatch.setattr(errors, "sleep", slept.append)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        errors.fail("a file is missing here")
    assert slept == [errors.PATIENCE_SECONDS]
    assert capsys.readouterr().err == "caat: error: rank 3: a file is missing here\n"
