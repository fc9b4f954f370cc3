"""status.json, especially if it cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

from caat.runs.status import read_status, read_why, write_status


def test_kept_and_read_back(tmp_path):
    assert (read_status(tmp_path), read_why(tmp_path)) == ("unknown", "")
    write_status(tmp_path, "failed", "no room")
    assert (read_status(tmp_path), read_why(tmp_path)) == ("failed", "no room")


def test_on_a_full_disk_the_old_file_takes_the_new_status(tmp_path, monkeypatch, capsys):
    write_status(tmp_path, "running")

    def full(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    write_status(tmp_path, "failed", "the disk is full")
    assert (read_status(tmp_path), read_why(tmp_path)) == ("failed", "the disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert capsys.readouterr().err == ""


def test_what_cannot_be_written_is_a_warning(tmp_path, capsys):
    write_status(tmp_path / "gone", "failed", "the cause")
    said = capsys.readouterr().err
    assert str(tmp_path / "gone" / "status.json") in said and "cannot be written (No such file" in said
