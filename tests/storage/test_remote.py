"""Folders by the URL of a file system of fsspec."""

from __future__ import annotations

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from caat.storage.remote import RemoteFolder, is_url


@pytest.fixture
def model(tmp_path):
    for name in ("config.json", "a.safetensors", "z.json"):
        (tmp_path / name).write_text(name)
    yield tmp_path
    MemoryFileSystem.store.clear()


def test_an_uploaded_folder_is_whole_and_never_overwritten(model):
    shown: list[int] = []
    RemoteFolder("memory://store/model", "to").upload(model, shown.append)
    # config.json comes last: until then, the folder is no model.
    assert shown == [len("a.safetensors"), len("z.json"), len("config.json")]
    assert {path: file.getvalue() for path, file in MemoryFileSystem.store.items()} == {
        f"/store/model/{file.name}": file.read_bytes() for file in model.iterdir()
    }
    with pytest.raises(ValueError, match="to=memory://store/model exists and is not an empty folder"):
        RemoteFolder("memory://store/model", "to")


def test_a_failed_upload_leaves_nothing(model, monkeypatch):
    put = MemoryFileSystem.put_file

    def full(self, source, target, **how):
        if target.endswith("config.json"):
            raise RuntimeError("quota exceeded.\nmore words")
        put(self, source, target, **how)

    monkeypatch.setattr(MemoryFileSystem, "put_file", full)
    folder = RemoteFolder("memory://store/model", "to")
    with pytest.raises(
        ValueError, match=r"^to=memory://store/model could not be written \(quota exceeded\): "
    ):
        folder.upload(model, lambda size: None)
    assert not MemoryFileSystem.store


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nope://bucket/model", "Protocol not known: nope"),
        ("memory://", "names no folder"),
        ("ftp://127.0.0.1:1/model", "refused"),
    ],
)
def test_a_url_that_cannot_be_used(url, problem):
    assert is_url(url)
    with pytest.raises(ValueError, match=problem) as error:
        RemoteFolder(url, "to")
    assert "\n" not in str(error.value)
