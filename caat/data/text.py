"""Sources of text: resolve ``data.path`` and load its documents."""

from __future__ import annotations

import glob
import mimetypes
import pickle
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from caat.data.hub import check_text_column, load_from_hub
from caat.data.quickstart import quickstart_text
from caat.data.tokenizer import TOKENIZER_FILES
from caat.storage.walk import walk
from conf.data import DataConfig

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

# File extension -> kind of file, as in `caat.data.reading`.
READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
KNOWN = f"{', '.join(READERS)} (text and json also as {', '.join(COMPRESSED)})"
# Documents read before the memory map is reopened.
REOPEN_AFTER = 16_384
# Metadata files that Hugging Face's datasets store next to the text.
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A resolved ``data.path``. ``kind``: quickstart, hub, prepared (``files`` is its folder) or a reader."""

    kind: str
    stem: str
    files: tuple[Path, ...] = ()


def check_source(config: DataConfig) -> Source:
    """Resolve ``config.path`` and check it within milliseconds, without network or heavy imports.

    Raises ``ValueError`` if the path or tokenizer does not exist, is empty or is of an unknown kind.
    """
    source = _find(config)
    _check_format(config, source)
    if config.streaming and source.kind != "hub":
        raise ValueError(
            f"data.streaming=true reads a Hugging Face dataset, and {config.given} is not one: leave "
            "data.streaming out"
        )
    # An option such as data=fineweb_edu brings a subset along, which another path replaces.
    if source.kind != "hub" and config.split != "train":
        raise ValueError(
            f"data.split={config.split} is a part of a Hugging Face dataset, and {config.given} is not one: "
            "leave data.split out"
        )
    if config.tokenizer is not None:
        tokenizer = Path(config.tokenizer).expanduser()
        if not tokenizer.is_file() or not tokenizer.stat().st_size:
            raise ValueError(
                f"data.tokenizer={config.tokenizer} is not a file or is empty: give a SentencePiece model "
                "or a tokenizer.json, or leave it out to train one on the text"
            )
    return source


def load_documents(config: DataConfig, cache: Path) -> Dataset:
    """Load the documents as a memory-mapped dataset with one column, ``text``.

    Rows of which only a part counts are in the form of :func:`caat.data.row_files.to_text`.

    Text files hold one document per paragraph (separated by blank lines), the other kinds one per row.
    The memory-mapped copy of local files is written to ``cache``; a Hugging Face dataset stays in that
    library's own cache. The quick-start text is downloaded to ``config.dir``.

    Raises ``ValueError`` if there is no text, it cannot be read, or the text column does not exist.
    """
    source = check_source(config)
    assert source.kind != "prepared", "a prepared folder holds tokens, not documents"
    documents = _from_hub(config, cache) if source.kind == "hub" else _from_files(config, source, cache)
    if not len(documents):
        raise ValueError(f"{config.given} holds no documents: give a path that contains text")
    return documents


def is_prepared(folder: Path) -> bool:
    """Return whether ``folder`` looks like output of `caat tokenize`."""
    return (folder / "index.json").is_file() and any((folder / name).is_file() for name in TOKENIZER_FILES)


def batches(documents: Dataset, rows: range, size: int) -> Iterator[list[str]]:
    """Yield the texts of ``rows``, ``size`` at a time, in constant memory.

    The memory map is reopened regularly: pages that were read count as resident while it is open.
    """
    for first in range(rows.start, rows.stop, REOPEN_AFTER):
        # A dataset reopens its files when it is unpickled. This pickle holds no external data.
        opened = pickle.loads(pickle.dumps(documents)).with_format("arrow")
        last = min(first + REOPEN_AFTER, rows.stop)
        for start in range(first, last, size):
            texts = opened[start : min(start + size, last)]["text"]
            try:
                yield texts.to_pylist()
            except UnicodeDecodeError as error:  # only in a Hugging Face dataset: local files were checked
                raise ValueError(
                    f"rows {start + 1:,} to {start + len(texts):,} of the dataset hold bytes that are not "
                    f"UTF-8 ({error}): fix or remove them"
                ) from None


def _check_format(config: DataConfig, source: Source) -> None:
    """Raise ``ValueError`` unless ``source`` holds rows, if ``config.format`` needs them."""
    if not config.marked:
        return
    if source.kind in ("quickstart", "text"):
        raise ValueError(
            f"data.format={config.format} needs rows with columns, and {config.given} has none: "
            "give a jsonl or parquet file (in a mixture with text, leave data.format out, and give a folder "
            "of chats that caat tokenize has prepared)"
        )
    from caat.data.chat import find_template

    find_template(config)


def _refuse(error: OSError) -> None:
    """Raise ``ValueError`` for a folder of texts that cannot be read: its files would be left out."""
    raise ValueError(
        f"{error.filename} cannot be searched ({error.strerror}): make it readable, or give a pattern"
    ) from error


def _find(config: DataConfig) -> Source:
    if config.path is None:
        return Source("quickstart", "quickstart")
    path = Path(config.path).expanduser()
    if path.is_dir():
        if is_prepared(path):
            return Source("prepared", path.name, (path,))
        found = (place / name for place, names in _with_text(path) for name in names)
        files = sorted(file for file in found if file.is_file() and not _is_aside(file, path))
        return _local(config, path.resolve().name, files)
    if path.is_file():
        if reader_of(path) is None:
            raise ValueError(f"{config.given} has an unknown extension: use one of {KNOWN}")
        return _local(config, path.name.split(".")[0], [path])
    if glob.has_magic(str(path)):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        return _local(config, "files", [file for file in files if file.is_file()])
    # A file extension (even an unsupported one, wiki.csv) or an existing parent folder: not a hub dataset.
    like_a_file = reader_of(path) or mimetypes.guess_type(path.name) != (None, None) or path.parent.is_dir()
    if like_a_file or not HUB_NAME.fullmatch(config.path):
        raise ValueError(
            f"{config.given} does not exist: check the path (relative to {Path.cwd()}), or give a "
            "Hugging Face dataset as owner/name"
        )
    return Source("hub", config.path.split("/")[-1])


def _with_text(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below ``top`` and their files, without what caat writes: prepared texts and runs."""
    for place, folders, names in walk(top, _refuse):
        folders[:] = [name for name in folders if not (is_prepared(place / name) or _is_run(place / name))]
        yield place, names


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.yaml", "status.json"))


def _is_aside(file: Path, folder: Path) -> bool:
    """Return whether ``file`` is hidden (``._a.jsonl``, ``.ipynb_checkpoints/``) or dataset metadata."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return hidden or file.name in DESCRIPTIONS


def _local(config: DataConfig, stem: str, files: list[Path]) -> Source:
    """Build the source from ``files``, ignoring empty files and those with an unknown extension."""
    files = [file for file in files if reader_of(file)]
    if not files:
        raise ValueError(f"{config.given} names no text file: known extensions are {KNOWN}")
    files = [file for file in files if file.stat().st_size]
    if not files:
        raise ValueError(f"{config.given} is empty: give a path that contains text")
    readers = sorted({str(reader_of(file)) for file in files})
    if len(readers) > 1:
        raise ValueError(
            f"{config.given} mixes files of kind {' and '.join(readers)}: "
            "choose one kind with a glob, such as data.path='folder/*.jsonl'"
        )
    return Source(readers[0], stem, tuple(files))


def reader_of(path: Path) -> str | None:
    """Return the kind of file that ``path`` is by its extension (text, json or parquet), or None."""
    if path.suffix in COMPRESSED:
        reader = READERS.get(Path(path.stem).suffix)
        return None if reader == "parquet" else reader
    return READERS.get(path.suffix)


def _from_files(config: DataConfig, source: Source, cache: Path) -> Dataset:
    from rich.console import Console
    from rich.progress import track

    from caat.data.reading import read_documents
    from caat.data.row_files import read_rows, to_text

    kind, field, files = source.kind, config.text_field, source.files
    if kind == "quickstart":
        kind, field, files = "json", "text", (quickstart_text(Path(config.dir).expanduser()),)
    quiet = not sys.stderr.isatty()
    tracked = track(files, "reading", console=Console(stderr=True), transient=True, disable=quiet)
    if config.marked:
        return stored(
            (to_text(read_rows(kind, file, config.columns.values()), config) for file in tracked), cache
        )
    return stored((read_documents(kind, file, field) for file in tracked), cache)


def stored(files: Iterable[Iterable[pyarrow.Array]], cache: Path) -> Dataset:
    """Write the texts of ``files`` to ``cache`` and return them from there."""
    import pyarrow
    from datasets import Dataset

    cache.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema({"text": pyarrow.string()})
    with pyarrow.ipc.new_stream(cache / "documents.arrow", schema) as out:
        for batches_of_texts in files:
            for texts in batches_of_texts:
                out.write(pyarrow.record_batch([texts], schema=schema))
    return Dataset.from_file(str(cache / "documents.arrow"))


def _from_hub(config: DataConfig, cache: Path) -> Dataset:
    from caat.data.row_files import to_text

    documents = load_from_hub(config)
    if config.marked:
        rows = ((f"row {number} of {config.path}", row) for number, row in enumerate(documents, 1))
        return stored([to_text(rows, config)], cache)
    field = config.text_field
    check_text_column(
        config, {name: getattr(each, "dtype", each) for name, each in documents.features.items()}
    )
    return documents.select_columns([field]).rename_columns({field: "text"})
