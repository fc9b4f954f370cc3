"""Which tasks a user means."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install lm-eval")

from eval.quality import tasks
from eval.quality.tasks import PAPER, find_tasks
from tests.eval.tasks import NAMES, write_tasks


def test_a_folder_of_task_files(tmp_path):
    found = find_tasks([str(write_tasks(tmp_path / "own"))])
    assert sorted(found.names) == sorted(NAMES)


@pytest.mark.slow
def test_names(tmp_path, monkeypatch):
    # Folders that only happen to be called so.
    monkeypatch.chdir(tmp_path)
    for name in ("paper", "piqa"):
        (tmp_path / name).mkdir()
    folder = write_tasks(tmp_path / "own")
    # One call: each reads lm-eval's own thousands of tasks.
    found = find_tasks(["piqa", str(folder), "paper", "piqa"])
    assert found.names == [*sorted(NAMES), "piqa", *(name for name in PAPER if name != "piqa")]


@pytest.mark.slow
def test_unknown_names():
    with pytest.raises(ValueError, match=r"tasks=hellaswagg is neither .* did you mean hellaswag"):
        find_tasks(["piqa", "hellaswagg"])


@pytest.mark.parametrize(("make", "says"), [(False, "no/such is not a folder"), (True, "holds no task")])
def test_folders_without_tasks(tmp_path, monkeypatch, make, says):
    monkeypatch.chdir(tmp_path)
    if make:
        (tmp_path / "no" / "such").mkdir(parents=True)
    with pytest.raises(ValueError, match=says):
        find_tasks(["no/such"])


def test_lm_eval_is_an_extra(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install lm-eval"):
        find_tasks(["paper"])
