"""A folder on an object store or another file system, by its URL, with fsspec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conf.checks import first_line, require

# Written last: a folder without it is not a model.
LAST = "config.json"


def is_url(place: str) -> bool:
    return "://" in place


class RemoteFolder:
    """The new folder ``url`` (`s3://bucket/model`). ``setting`` is the name of the setting that gives it.

    Raises ``ValueError`` for a URL of an unknown kind or without its library, for a store that cannot be
    reached, and for a folder that is not empty.
    """

    def __init__(self, url: str, setting: str) -> None:
        # Imported late: only a URL needs it.
        from fsspec.core import url_to_fs

        self._name = f"{setting}={url}"
        with self._errors("cannot be used"):
            self._files, self._path = url_to_fs(url)
            taken = self._files.exists(self._path) and any(self._files.ls(self._path))
        require(bool(self._path.strip("/")), f"{self._name} names no folder: add a path")
        require(not taken, f"{self._name} exists and is not an empty folder: give a new one")

    def upload(self, folder: Path, show: Callable[[int], None]) -> None:
        """Copy the files of ``folder``. ``show`` is called with the bytes of each.

        Raises ``ValueError`` if that fails; then no files are left.
        """
        names = sorted(folder.iterdir(), key=lambda file: (file.name == LAST, file.name))
        try:
            with self._errors("could not be written"):
                self._files.makedirs(self._path, exist_ok=True)
                for file in names:
                    self._files.put_file(str(file), f"{self._path}/{file.name}")
                    show(file.stat().st_size)
        except BaseException:
            with suppress(Exception):
                self._files.rm(self._path, recursive=True)
            raise

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn an error into a ``ValueError``. The libraries of stores raise errors of their own kinds."""
        try:
            yield
        except Exception as error:
            text = first_line(error).rstrip(".")
            raise ValueError(
                f"{self._name} {what} ({text}): see fsspec's documentation for its URLs"
            ) from error
