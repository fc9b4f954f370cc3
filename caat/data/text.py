"""Sources of text: resolve ``data.path`` and load its documents."""

from __future__ import annotations

import glob
import mimetypes
import pickle
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from caat.data.quickstart import quickstart_text
from caat.data.tokenizer import TOKENIZER_FILES
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
# Timeout in seconds for asking the Hugging Face hub about a dataset.
ANSWERS_WITHIN = 10


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
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
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
            "give a jsonl or parquet file"
        )
    from caat.data.chat import find_template

    find_template(config)


def _find(config: DataConfig) -> Source:
    if config.path is None:
        return Source("quickstart", "quickstart")
    path = Path(config.path).expanduser()
    if path.is_dir():
        if is_prepared(path):
            return Source("prepared", path.name, (path,))
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_aside(file, path))
        return _local(config, path.resolve().name, files)
    if path.is_file():
        if _reader(path) is None:
            raise ValueError(f"{config.given} has an unknown extension: use one of {KNOWN}")
        return _local(config, path.name.split(".")[0], [path])
    if glob.has_magic(str(path)):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        return _local(config, "files", [file for file in files if file.is_file()])
    # A file extension (even an unsupported one, wiki.csv) or an existing parent folder: not a hub dataset.
    like_a_file = _reader(path) or mimetypes.guess_type(path.name) != (None, None) or path.parent.is_dir()
    if like_a_file or not HUB_NAME.fullmatch(config.path):
        raise ValueError(
            f"{config.given} does not exist: check the path (relative to {Path.cwd()}), or give a "
            "Hugging Face dataset as owner/name"
        )
    return Source("hub", config.path.split("/")[-1])


def _is_aside(file: Path, folder: Path) -> bool:
    """Return whether ``file`` is hidden (``._a.jsonl``, ``.ipynb_checkpoints/``) or dataset metadata."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return hidden or file.name in DESCRIPTIONS


def _local(config: DataConfig, stem: str, files: list[Path]) -> Source:
    """Build the source from ``files``, ignoring empty files and those with an unknown extension."""
    files = [file for file in files if _reader(file)]
    if not files:
        raise ValueError(f"{config.given} names no text file: known extensions are {KNOWN}")
    files = [file for file in files if file.stat().st_size]
    if not files:
        raise ValueError(f"{config.given} is empty: give a path that contains text")
    readers = sorted({str(_reader(file)) for file in files})
    if len(readers) > 1:
        raise ValueError(
            f"{config.given} mixes files of kind {' and '.join(readers)}: "
            "choose one kind with a glob, such as data.path='folder/*.jsonl'"
        )
    return Source(readers[0], stem, tuple(files))


def _reader(path: Path) -> str | None:
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
        return _stored((to_text(read_rows(kind, file), config) for file in tracked), cache)
    return _stored((read_documents(kind, file, field) for file in tracked), cache)


def _stored(files: Iterable[Iterable[pyarrow.Array]], cache: Path) -> Dataset:
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
    from datasets import load_dataset

    from caat.data.reading import no_column
    from caat.data.row_files import to_text

    assert config.path is not None
    try:
        with _only_cached(unless=_answers(config.path)):
            documents = load_dataset(config.path, config.subset, split=config.split)
    except Exception as error:
        raise ValueError(
            f"{config.given} is neither a local file or folder nor a Hugging Face dataset that can "
            f"be loaded (data.subset={config.subset}, data.split={config.split}): {_cause(error)}. "
            "Check the path, the dataset's name, its subset and split, and the network"
        ) from error
    if config.marked:
        rows = ((f"row {number} of {config.path}", row) for number, row in enumerate(documents, 1))
        return _stored([to_text(rows, config)], cache)
    field = config.text_field
    if field not in documents.column_names:
        raise ValueError(no_column(config.path, field, documents.column_names))
    if getattr(documents.features[field], "dtype", None) not in ("string", "large_string", "string_view"):
        raise ValueError(
            f"data.text_field={field} of {config.path} holds {documents.features[field]}, not text: "
            f"set data.text_field to a column of strings (it has {', '.join(documents.column_names)})"
        )
    return documents.select_columns([field]).rename_columns({field: "text"})


def _answers(name: str) -> bool:
    """Return whether the hub can be reached. Asks once, whereas `datasets` retries for half a minute.

    Raises an error of huggingface_hub if the dataset does not exist or access is denied.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().dataset_info(name, timeout=ANSWERS_WITHIN)
    except HfHubHTTPError:
        raise
    except Exception:  # network errors of whichever HTTP library huggingface_hub uses
        return False
    return True


@contextmanager
def _only_cached(unless: bool) -> Iterator[None]:
    """Restrict `datasets` to its cache, without network access, unless ``unless`` holds."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not unless
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _cause(error: BaseException) -> str:
    """Return the first line of the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(". ")
