"""What a power cut leaves of small files, checkpoints and conversions once they are said to be there: all."""

from __future__ import annotations

from pathlib import Path

import pytest

from caat.storage.durable import sync_folder, write_bytes, write_json
from caat.training.checkpoint.folder import checkpoint_name, point_latest_at, publish, written_aside
from launch.convert import main as convert
from tests.disk import Disk
from tests.layers.huggingface.llamas import write_llama
from tests.training.test_checkpoint import saver, start, state


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


def test_small_files_and_the_names_of_a_folder(tmp_path, disk):
    write_bytes(tmp_path / "a", b"text")
    write_json(tmp_path / "b", {"a": 1})
    assert disk.lost(tmp_path) == [f"{tmp_path}/"]
    sync_folder(tmp_path)
    assert not disk.lost(tmp_path)


def test_what_is_published_is_on_the_disk_before_it_has_its_name(tmp_path, disk):
    for step in (1, 2, 2):
        aside = tmp_path / "aside"
        aside.mkdir()
        write_bytes(aside / "config.json", b"{}")
        folder = tmp_path / checkpoint_name(step)
        publish(aside, folder)
        assert not disk.lost(tmp_path)
    point_latest_at(tmp_path / checkpoint_name(1))
    assert not disk.lost(tmp_path)


def test_what_is_written_aside_is_too(tmp_path, disk):
    with written_aside(tmp_path / "model") as aside:
        write_bytes(aside / "config.json", b"{}")
    assert not disk.lost(tmp_path)


def lost_of_a_save(folder: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        saving = saver(folder, start(2, 1, 0.5, 1), 0.5)
        saving.save(state(1))
        saving.wait()
        return disk.lost(folder / "checkpoints")


def test_two_that_write_to_one_folder(tmp_path):
    with (
        written_aside(tmp_path / "model") as aside,
        pytest.raises(ValueError, match="another process writes to"),
        written_aside(tmp_path / "model"),
    ):
        pass
    assert not aside.exists()
    with written_aside(tmp_path / "model") as aside:
        (aside / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "file"]


def test_a_save(ranks, tmp_path):
    assert ranks(1).run(lost_of_a_save, tmp_path) == [[]]


def test_a_conversion_there_and_back(tmp_path, disk):
    write_llama(tmp_path / "theirs")
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert([f"from={tmp_path / 'theirs'}", f"to={ours}", "parallel.tensor=2", "sync.ratio=0.5"])
    convert([f"from={ours}", f"to={back}"])
    assert not disk.lost(ours) and not disk.lost(back)
