"""Text to a folder of token shards: once per setting, whoever and however many ask for it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from caat.data import quickstart
from caat.data.encode import Job, choose_workers, encode_pieces
from caat.data.huggingface_tokenizer import NAMED_IN
from caat.data.progress import TokenizeProgress
from caat.data.shards import FORMAT, SPLITS, VERSION, file_name, read_index, token_dtype
from caat.data.split import held_out_below, is_held_out
from caat.data.text import batches, check_source, load_documents
from caat.data.tokenizer import find_tokenizer, load_tokenizer, tokenizer_files, train_tokenizer
from caat.storage.disk import free_bytes, no_room, size_text
from caat.storage.durable import sync_folder, write_bytes, write_json
from conf.data import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

# Text that a tokenizer is trained on, at most: it is held in memory, about ten times over.
TOKENIZER_BYTES = 100 << 20


def prepared_folder(config: DataConfig) -> Path:
    """The folder of shards for ``config``: complete if it exists. Cheap; ``ValueError`` as `check_source`."""
    source = check_source(config)
    if source.kind == "prepared":
        return source.files[0]
    stem = re.sub(r"[^\w.-]+", "-", source.stem).strip("-.") or "text"
    return Path(config.dir).expanduser() / f"{stem}-{_key(config)}"


def prepare(config: DataConfig, out: Path | None = None) -> Path:
    """The folder of token shards for ``config``, made first if it is not there.

    ``out`` is the folder to make instead of the one under ``config.dir``. Any number of processes may
    call this at once: one does the work, the others wait. A folder under its final name is complete.

    Raises ``ValueError`` for text or a tokenizer that cannot be used (see `load_documents`,
    `train_tokenizer`, `load_tokenizer`), or an ``out`` that holds something else.
    """
    folder = out or prepared_folder(config)
    if check_source(config).kind == "prepared":
        if out is not None:
            raise ValueError(
                f"data.path={config.path} is prepared already: use it as it is, without out={out}"
            )
        read_index(folder)
        return folder
    if not _is_done(config, folder):
        with _locked(folder):
            if not _is_done(config, folder):
                _make(config, folder)
    return folder


def data_fingerprint(tokens: Path) -> str:
    """Of prepared tokens: the same wherever they lie, and if they are prepared again from the same text."""
    index = read_index(tokens)
    digest = hashlib.sha256(find_tokenizer(tokens).read_bytes())
    train = [asdict(each) for each in index.train]
    digest.update(json.dumps([index.documents, index.bytes, train], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def tokenize(config: DataConfig, out: Path) -> None:
    """Make the new folder ``out`` hold the shards of ``config``: tokenizer, token files, index.

    A document goes to validation if a hash of its text says so, in whatever order and company it comes;
    where that leaves a split empty, one document moves over. Memory does not grow with the text, nor does
    the result depend on ``config.workers``.
    """
    if config.tokenizer is not None:
        # Before all text is read, and by the name that was given.
        load_tokenizer(Path(config.tokenizer).expanduser())
    out.mkdir(parents=True)
    scratch = out / "scratch"
    documents = load_documents(config, cache=scratch)
    below = held_out_below(_texts(documents), config.validation)
    if config.tokenizer is None:
        train_tokenizer(_tokenizer_lines(documents, below), config.vocab_size, out / "tokenizer.model")
    else:
        for name, content in tokenizer_files(Path(config.tokenizer).expanduser()).items():
            write_bytes(out / name, content)
    model = find_tokenizer(out)
    tokenizer = load_tokenizer(model)
    vocab_size = tokenizer.vocab_size()

    checksums = {path.name: write_bytes(path, path.read_bytes()) for path in out.iterdir() if path.is_file()}
    unigram = np.zeros(vocab_size, dtype=np.int64)
    totals = {"documents": 0, "bytes": 0}
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    workers = choose_workers(config.workers, documents)
    with TokenizeProgress(len(documents)) as progress:
        for piece in encode_pieces(Job(documents, model, out, below), workers, progress.show):
            unigram += piece.unigram
            checksums |= piece.checksums
            totals["documents"] += piece.documents
            totals["bytes"] += piece.bytes
            for split, tokens in piece.tokens.items():
                if tokens:
                    splits[split].append({"file": file_name(split, piece.number), "tokens": tokens})

    counts = BytesIO()
    np.save(counts, unigram)
    checksums["unigram.npy"] = write_bytes(out / "unigram.npy", counts.getvalue())
    index = {
        "format": FORMAT,
        "version": VERSION,
        "key": _key(config),
        "source": config.path or quickstart.PACKAGE,
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "bos": tokenizer.bos_id(),
        "eos": tokenizer.eos_id(),
        **totals,
        **{split: sorted(files, key=lambda entry: entry["file"]) for split, files in splits.items()},
        "xxh3_128": dict(sorted(checksums.items())),
    }
    write_json(out / "index.json", index)
    shutil.rmtree(scratch, ignore_errors=True)
    sync_folder(out)


def _make(config: DataConfig, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        tokenize(config, partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not (full := no_room(error)):
            raise
        text = sum(file.stat().st_size for file in check_source(config).files)
        raise ValueError(
            f"{folder} could not be written ({full.strerror}): preparing {size_text(text)} of text takes "
            f"about twice as much, and {size_text(free_bytes(folder) or 0)} are free. Make room, or give "
            "another folder, data.dir=... (out=... of caat tokenize)"
        ) from error


def _is_done(config: DataConfig, folder: Path) -> bool:
    """Whether ``folder`` is complete; ``ValueError`` if something else is in its place."""
    if not folder.exists():
        return False
    if not folder.is_dir() or not (folder / "index.json").is_file():
        raise ValueError(f"{folder} exists and holds no token shards: remove it or choose another folder")
    if read_index(folder).key != _key(config):
        raise ValueError(
            f"{folder} holds shards of other text or settings: remove it or choose another folder"
        )
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process to prepare {folder}", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.5)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made ({error.strerror}): give another folder, data.dir=... (out=... of caat "
            "tokenize)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _key(config: DataConfig) -> str:
    """8 hex digits of all that changes the shards; a file stands for itself by path, size and time."""
    source = check_source(config)
    settings = {
        "version": VERSION,
        "path": quickstart.SHA256 if source.kind == "quickstart" else config.path,
        "files": [_identity(file) for file in source.files],
        "hub": [config.subset, config.split] if source.kind == "hub" else None,
        "text_field": config.text_field,
        "tokenizer": _tokenizer_key(Path(config.tokenizer).expanduser())
        if config.tokenizer
        else config.vocab_size,
        "validation": config.validation,
    }
    if source.files:
        del settings["path"]  # the files say it, from wherever they are named
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _tokenizer_key(path: Path) -> list:
    if path.suffix != ".json":
        return _identity(path)
    # Other files name its begin and end of a document.
    return [_identity(file) for file in (path, *map(path.with_name, NAMED_IN)) if file.is_file()]


def _identity(file: Path) -> list[str | int]:
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def _tokenizer_lines(documents: Dataset, below: int) -> Iterator[str]:
    """Lines of training documents, of every n-th one where all would be more than `TOKENIZER_BYTES`."""
    stride = 1 + documents.data.nbytes // TOKENIZER_BYTES
    for text in _texts(documents.select(range(0, len(documents), stride))):
        if not is_held_out(text.encode(), below):
            yield from (line for line in text.split("\n") if line)


def _texts(documents: Dataset) -> Iterator[str]:
    for batch in batches(documents, range(len(documents)), 256):
        yield from (text for text in batch if text and not text.isspace())
