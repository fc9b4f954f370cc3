"""Turn text into a folder of token shards, once per setting, however many processes ask for it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from caat.data import quickstart
from caat.data.chat import find_template
from caat.data.encode import Job, Piece, choose_workers, encode_pieces
from caat.data.huggingface_tokenizer import NAMED_IN, named_token, read_settings, write_template
from caat.data.progress import TokenizeProgress
from caat.data.rows import from_text
from caat.data.shards import FORMAT, SPLITS, VERSION, file_name, read_index, token_dtype
from caat.data.split import Bounds, bounds_of
from caat.data.streaming import blocks_of
from caat.data.text import batches, check_source
from caat.data.tokenizer import END, find_tokenizer, load_tokenizer, tokenizer_files, train_tokenizer
from caat.storage.disk import free_bytes, no_room, size_text
from caat.storage.durable import sync_folder, write_bytes, write_json
from conf.checks import require
from conf.data import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

# Upper bound on the text that a tokenizer is trained on: training holds about ten copies of it in memory.
TOKENIZER_BYTES = 100 << 20


def prepared_folder(config: DataConfig) -> Path:
    """Return the folder of shards for ``config``, which is complete if it exists.

    Cheap. Raises ``ValueError`` like `check_source`, and for a folder that was prepared in another format.
    """
    source = check_source(config)
    if source.kind == "prepared":
        index = read_index(source.files[0])
        require(
            config.format in (None, index.rows),
            f"data.format={config.format}, but {config.given} was prepared with {index.rows}: leave "
            "data.format out, or give the rows themselves (in a mixture with text, give the folder of chats "
            "that caat tokenize has prepared)",
        )
        require(
            config.chat_template is None or _about_rows(config)["template"] == index.template,
            f"data.chat_template={config.chat_template}, but {config.given} was prepared with another "
            "template: leave data.chat_template out, or give the rows themselves",
        )
        return source.files[0]
    stem = re.sub(r"[^\w.-]+", "-", source.stem).strip("-.") or "text"
    return Path(config.dir).expanduser() / f"{stem}-{settings_key(config)}"


def prepare(config: DataConfig, out: Path | None = None) -> Path:
    """Return the folder of token shards for ``config``, creating it if it does not exist.

    ``out`` replaces the folder under ``config.dir``. Any number of processes may call this at once: one
    does the work, the others wait. A folder under its final name is complete.

    Raises ``ValueError`` if the text or the tokenizer cannot be used (see `load_documents`,
    `train_tokenizer`, `load_tokenizer`) or ``out`` holds something else.
    """
    folder = out or prepared_folder(config)
    if check_source(config).kind == "prepared":
        if out is not None:
            raise ValueError(f"{config.given} is already prepared: use it directly, without out={out}")
        read_index(folder)
        return folder
    if not _is_done(config, folder):
        with locked(folder):
            if not _is_done(config, folder):
                _make(config, folder)
    return folder


def data_fingerprint(tokens: Path, *, checksums: bool = True) -> str:
    """Return a hash of the prepared tokens that depends on their content, not on their location.

    Preparing the same text again gives the same hash. Earlier versions did not hash the ``checksums`` of the
    files, but only the numbers of documents, bytes and tokens.
    """
    index = read_index(tokens)
    digest = hashlib.sha256(find_tokenizer(tokens).read_bytes())
    content: list = [index.documents, index.bytes, [asdict(each) for each in index.train]]
    if index.rows != "text":
        content += [index.rows, index.template, index.counted]
    if checksums:
        content.append({each.file: index.xxh3_128.get(each.file) for each in index.train})
    digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def tokenize(config: DataConfig, out: Path) -> None:
    """Create the folder ``out`` and write the shards of ``config`` to it: tokenizer, token files, index.

    A hash of its text decides whether a document goes to validation, independent of the other documents
    and their order; if a split would be empty, one document (of the first block) moves to it. Memory use
    does not grow with the text, and the result does not depend on ``config.workers``.
    """
    if config.tokenizer is not None:
        # Fail before all text is read, and report the path that the user gave.
        load_tokenizer(Path(config.tokenizer).expanduser())
    out.mkdir(parents=True)
    scratch = out / "scratch"
    checksums: dict[str, str] = {}
    unigram = np.zeros(1, dtype=np.int64)
    totals = {"documents": 0, "bytes": 0}
    used = SPLITS if config.test else SPLITS[:-1]
    counted = dict.fromkeys(used, 0)
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in used}
    for piece in _encode(config, out, scratch):
        unigram = unigram + piece.unigram
        checksums |= piece.checksums
        totals["documents"] += piece.documents
        totals["bytes"] += piece.bytes
        for split in used:
            counted[split] += piece.counted[split]
            if tokens := piece.tokens[split]:
                splits[split].append({"file": file_name(split, piece.number), "tokens": tokens})
    tokenizer = load_tokenizer(find_tokenizer(out))
    vocab_size = tokenizer.vocab_size()
    # The files of the tokenizer.
    others = [path for path in out.iterdir() if path.is_file() and path.name not in checksums]
    checksums |= {path.name: write_bytes(path, path.read_bytes()) for path in others}

    counts = BytesIO()
    np.save(counts, unigram)
    checksums["unigram.npy"] = write_bytes(out / "unigram.npy", counts.getvalue())
    index = {
        "format": FORMAT,
        "version": VERSION,
        "key": settings_key(config),
        "source": config.path or quickstart.PACKAGE,
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "bos": tokenizer.bos_id(),
        "eos": tokenizer.eos_id(),
        **totals,
        **(_about_rows(config) | {"counted": counted} if config.marked else {}),
        **{split: sorted(files, key=_by_number) for split, files in splits.items()},
        "xxh3_128": dict(sorted(checksums.items())),
    }
    write_json(out / "index.json", index)
    shutil.rmtree(scratch, ignore_errors=True)
    sync_folder(out)


def _by_number(entry: dict[str, Any]) -> tuple[int, str]:
    """Sort by piece number: shorter names first, because numbers from 100,000 on have more digits."""
    return len(entry["file"]), entry["file"]


def _encode(config: DataConfig, out: Path, scratch: Path) -> Iterator[Piece]:
    """Write the tokenizer and then the token files of one block after the other to ``out``.

    The tokenizer and the bounds of the splits come from the first block. Pieces are numbered through.
    """
    number = 0
    with ExitStack() as stack:
        for documents in blocks_of(config, scratch):
            if number == 0:
                bounds = bounds_of(texts_of(documents), config.validation, config.test)
                model = _write_tokenizer(config, documents, bounds, out)
                total = None if config.streaming else len(documents)
                progress = stack.enter_context(TokenizeProgress(total))
            job = Job(documents, model, out, bounds, config.marked, first=number)
            for piece in encode_pieces(job, choose_workers(config.workers, documents), progress.show):
                number += 1
                yield piece
            progress.next_block()
            # A block that is still mapped would keep its space on disk while the next one is written.
            del documents, job


def _write_tokenizer(config: DataConfig, documents: Dataset, bounds: Bounds, out: Path) -> Path:
    """Write the files of the tokenizer to ``out``, which is trained if none is given; return the main one."""
    if config.tokenizer is None:
        lines = tokenizer_lines(documents, bounds, config.marked, TOKENIZER_BYTES)
        train_tokenizer(lines, config.vocab_size, out / "tokenizer.model")
    else:
        for name, content in tokenizer_files(Path(config.tokenizer).expanduser()).items():
            write_bytes(out / name, content)
    model = find_tokenizer(out)
    if config.chat_template is not None:
        write_template(model, find_template(config))
    return model


def _make(config: DataConfig, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a process that was killed
    try:
        tokenize(config, partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not (full := no_room(error)):
            raise
        text = sum(file.stat().st_size for file in check_source(config).files)
        # The size of a Hugging Face dataset is not known.
        of = f"{size_text(text)} of text" if text else "text"
        raise ValueError(
            f"{folder} could not be written ({full.strerror}): preparing {of} needs about twice as much "
            f"(more if it is compressed), and {size_text(free_bytes(folder) or 0)} are free. Free space, or "
            "choose another folder with data.dir=... (out=... for caat tokenize)"
        ) from error


def _is_done(config: DataConfig, folder: Path) -> bool:
    """Return whether ``folder`` is complete. Raise ``ValueError`` if something else is in its place."""
    if not folder.exists():
        return False
    if not folder.is_dir() or not (folder / "index.json").is_file():
        raise ValueError(f"{folder} exists but holds no token shards: remove it or choose another folder")
    if read_index(folder).key != settings_key(config):
        raise ValueError(
            f"{folder} holds shards of another text or other settings: remove it or choose another folder"
        )
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process to prepare {folder}", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.5)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be created ({error.strerror}): choose another folder with data.dir=... "
            "(out=... for caat tokenize)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def settings_key(config: DataConfig) -> str:
    """Hash everything that affects the shards to 8 hex digits. Files enter by path, size and mtime."""
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
    if config.test:
        settings["test"] = config.test
    if config.marked:
        settings |= {**_about_rows(config), **config.columns}
    if config.streaming:
        settings["streaming"] = True  # a tokenizer is trained on the first block
    if source.files:
        del settings["path"]  # the resolved files replace it: the same file may be named in several ways
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _about_rows(config: DataConfig) -> dict[str, str | None]:
    """Return the fields of the index that say what rows are, and a hash of the template of chats."""
    template = (find_template(config) if config.format == "chat" else None) or ""
    digest = hashlib.sha256(template.encode()).hexdigest()[:8]
    return {"rows": config.format, "template": digest if template else ""}


def _tokenizer_key(path: Path) -> list:
    """Return what the tokens depend on: a copy of the tokenizer, such as in a checkpoint, is the same."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix != ".json":
        return [digest]
    # The tokens that begin and end a document are named in other files, in the last one by number.
    numbers = read_settings(path.with_name(NAMED_IN[-1]))
    names = {name: named_token(path, name)[1] for name in ("bos", "eos")}
    return [digest, *(token or numbers.get(f"{name}_token_id") for name, token in names.items())]


def _identity(file: Path) -> list[str | int]:
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def tokenizer_lines(documents: Dataset, bounds: Bounds, marked: bool, limit: int) -> Iterator[str]:
    """Yield lines of the training documents, of every n-th one if all exceed ``limit`` bytes."""
    stride = 1 + documents.data.nbytes // limit
    for text in texts_of(documents.select(range(0, len(documents), stride))):
        if bounds.split(text.encode()) == "train":
            if marked:
                # The end of a turn is a token of its own.
                text = from_text(text).text.replace(END, "")
            yield from (line for line in text.split("\n") if line)


def texts_of(documents: Dataset) -> Iterator[str]:
    for batch in batches(documents, range(len(documents)), 256):
        yield from (text for text in batch if text and not text.isspace())
