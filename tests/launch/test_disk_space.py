"""Full disks: detected before training if possible, otherwise reported with the path and the bytes needed."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple

import pytest

from caat.data import corpus
from caat.planning.costs import checkpoint_bytes
from caat.storage.disk import disk_problem, no_room, size_text
from conf.data import DataConfig
from conf.reading.options import GROUPS
from launch.command.errors import user_errors
from launch.run.compose import compose
from launch.run.disk_space import check_space
from launch.run.folder import create_run_folder
from layers.weights import parameter_count

Usage = namedtuple("Usage", "total used free")
NEED = checkpoint_bytes(compose([]).model, 3)


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """Set the free bytes of every disk and the size that it reports."""
    monkeypatch.chdir(tmp_path)

    def set_free(free: int, total: int = 10**12) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, total - free, free))

    return set_free


@pytest.mark.parametrize("model", GROUPS["model"])
def test_the_size_of_a_checkpoint(model):
    config = compose([f"model={model}"]).model
    assert checkpoint_bytes(config, 3) == 12 * parameter_count(config)


def test_room_for_one_more_checkpoint(disk, tmp_path):
    disk(NEED)
    check_space(compose([]), 1)
    disk(0, total=0)  # some file systems do not report a size
    check_space(compose([]), 1)
    disk(NEED - 1)
    with pytest.raises(ValueError, match=rf"63.7 MB, but 63.7 MB are free in {tmp_path}, for new/run/ch"):
        check_space(compose(["run.dir=new/run"]), 1)
    # Files left by an interrupted save count as free space: the next save removes them.
    (tmp_path / "run/checkpoints/step-00000003.tmp").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step-00000003.tmp/model.safetensors").write_bytes(b"-")
    check_space(compose(["run.dir=run"]), 1)


@pytest.mark.parametrize(
    ("settings", "numbers"), [([], 2), (["optim.momentum=0"], 1)], ids=["momentum", "plain"]
)
def test_room_for_the_state_of_sgd(disk, settings, numbers):
    config = compose(["optim=sgd", *settings])
    need = 4 * numbers * parameter_count(config.model)
    disk(need)
    check_space(config, 1)
    disk(need - 1)
    with pytest.raises(ValueError, match="a checkpoint of this run takes"):
        check_space(config, 1)


def test_room_for_what_codecs_keep(disk):
    """Two processes: each keeps half of the residuals, and half of the weights that are gathered."""
    config = compose(["parallel.processes=1", "data_sync.codec=int8", "data_sync.weights_codec=int8"])
    more = 2 * 4 * parameter_count(config.model)
    disk(NEED + more + 100)
    check_space(config, 2)
    disk(NEED + more - 100)
    with pytest.raises(ValueError, match="a checkpoint of this run takes"):
        check_space(config, 2)
    check_space(config, 1)


def test_room_for_islands(disk):
    """Anchor and velocity; for each island three numbers of state, a residual and two changes in flight."""
    settings = ["parallel.processes=1", "parallel.islands=2", "islands.codec=int8", "islands.delay=5"]
    config = compose(settings)
    need = 4 * (2 + 2 * (3 + 1 + 2)) * parameter_count(config.model)
    disk(need)
    check_space(config, 2)
    disk(need - 1)
    with pytest.raises(ValueError, match="a checkpoint of this run takes"):
        check_space(config, 2)


def test_no_run_begins_where_its_checkpoints_cannot_be_written(disk, monkeypatch):
    disk(NEED)
    monkeypatch.setattr("launch.run.disk_space.os.access", lambda *_: False)
    with pytest.raises(ValueError, match=r"for new/checkpoints, is not writable: give run\.dir"):
        check_space(compose(["run.dir=new"]), 1)


def test_what_a_full_disk_says(disk, tmp_path, capsys):
    full = OSError(errno.ENOSPC, "No space left on device")
    disk(1_500_000)
    assert disk_problem(full, tmp_path, 2_000_000_000) == (
        f"{tmp_path}: No space left on device; 2.0 GB are needed and 1.5 MB are free"
    )
    wrapped = RuntimeError("somebody else's words")
    wrapped.__cause__ = full
    assert no_room(wrapped) and not no_room(OSError(errno.EIO, "broken")) and not no_room(None)
    with pytest.raises(SystemExit, match="2"), user_errors():
        raise full
    assert capsys.readouterr().err == ("caat: error: No space left on device (df shows where): make room\n")
    assert size_text(999_949_999) == "999.9 MB"


def test_text_that_finds_no_room(disk, tmp_path, monkeypatch):
    disk(100_000)
    (tmp_path / "own.txt").write_text("text " * 20_000)

    def tokenize(config: DataConfig, out) -> None:
        out.mkdir()
        raise RuntimeError("while writing") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus, "tokenize", tokenize)
    says = r"data/own-\w+ could not be written \(No space left on device\)"
    says += r".*0\.1 MB of text .* twice as much .*, and 0\.1 MB are free.*data\.dir"
    with pytest.raises(ValueError, match=says):
        corpus.prepare(DataConfig(path="own.txt", dir="data"))
    assert not list((tmp_path / "data").glob(".own*partial"))


def test_a_run_folder_that_finds_no_room(disk, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("launch.run.folder._write_environment", full)
    with pytest.raises(ValueError, match=r"new cannot be written \(No space left on device\): make room"):
        create_run_folder(compose(["run.dir=new"]))
