"""Encode documents into token files, one piece of the corpus at a time, in any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import compress, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_128

from caat.data.marks import COUNTS
from caat.data.rows import encode_row, from_text
from caat.data.shards import SPLITS, file_name, mark_name, token_dtype
from caat.data.split import Bounds
from caat.data.text import batches
from caat.data.tokenizer import load_tokenizer
from caat.machine import available_cores

if TYPE_CHECKING:
    from datasets import Dataset

# The split into pieces depends only on the documents, so any number of workers writes the same files.
DOCUMENTS_PER_PIECE = 1000
MOST_PIECES = 256
# Documents per call of the tokenizer: enough to hide Python's overhead, few enough to keep memory small.
BATCH = 64
BYTES_PER_WORKER = 16 << 20
NOTHING = np.empty(0, dtype=np.int32)

# Called with the numbers of documents, bytes of text and tokens.
Tick = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Job:
    """The input of a worker: documents in column ``text``, tokenizer, output folder, held-out bound.

    ``marked``: the documents are those of `caat.data.row_files.to_text`. ``first`` is the number of the first
    piece.
    """

    documents: Dataset
    tokenizer: Path
    out: Path
    bounds: Bounds
    marked: bool = False
    first: int = 0


@dataclass
class Piece:
    """The result of encoding one piece.

    ``tokens`` holds the token count of each split, ``counted`` how many of them count as targets, ``unigram``
    [vocab_size] how often each token occurs in training, ``checksums`` the checksum of each file by name.
    """

    number: int
    documents: int
    bytes: int
    tokens: dict[str, int]
    counted: dict[str, int]
    unigram: np.ndarray
    checksums: dict[str, str] = field(default_factory=dict)


def choose_workers(asked: int | None, documents: Dataset) -> int:
    """Return ``asked``, or one worker per available core, but fewer if the text is too short to pay off."""
    if asked is not None:
        return asked
    return min(available_cores(), 1 + documents.data.nbytes // BYTES_PER_WORKER)


def encode_pieces(job: Job, workers: int, show: Tick) -> Iterator[Piece]:
    """Encode all documents into ``job.out`` and yield the pieces as they complete, in any order.

    ``show`` is called regularly with the totals so far: documents, bytes, tokens. A document is encoded as
    ``[bos] + pieces + [eos]``; blank documents are skipped; empty files are not written.
    """
    total = len(job.documents)
    count = max(1, min(MOST_PIECES, total // DOCUMENTS_PER_PIECE))
    cuts = [total * number // count for number in range(count + 1)]
    pieces = {number: range(*pair) for number, pair in enumerate(pairwise(cuts), job.first)}
    if min(workers, count) == 1:
        yield from _encode_inline(job, pieces, show)
    else:
        yield from _encode_in_processes(job, pieces, min(workers, count), show)


class _File:
    """A new file of numbers of one type, flushed to disk when it is closed, and its checksum."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self._dtype, self._digest = path, dtype, xxh3_128()
        self._file = path.open("xb")

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, numbers: np.ndarray) -> None:
        data = numbers.astype(self._dtype).tobytes()
        self._file.write(data)
        self._digest.update(data)

    def checksum(self) -> str:
        return self._digest.hexdigest()


class _Encoder:
    def __init__(self, job: Job) -> None:
        self.out = job.out
        self.bounds = job.bounds
        self.documents = job.documents
        self.marked = job.marked
        self.tokenizer = load_tokenizer(job.tokenizer)
        self.vocab_size = self.tokenizer.vocab_size()
        self.dtype = token_dtype(self.vocab_size)

    def encode(self, number: int, rows: range, tick: Tick) -> Piece:
        """Write the files of one piece; ``tick`` is called with the counts of each batch."""
        none = (dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0))
        piece = Piece(number, 0, 0, *none, np.zeros(self.vocab_size, dtype=np.int64))
        with ExitStack() as stack:
            files = {
                split: [stack.enter_context(file) for file in self._files(split, number)] for split in SPLITS
            }
            for read in batches(self.documents, rows, BATCH):
                texts = [text for text in read if text and not text.isspace()]
                size, encoded = self._encoded(texts)
                for split, chosen in self._sides(texts).items():
                    parts = [np.concatenate([NOTHING, *compress(each, chosen)]) for each in encoded]
                    for file, part in zip(files[split], parts, strict=True):
                        file.write(part)
                    piece.tokens[split] += len(parts[0])
                    piece.counted[split] += int((parts[-1] & COUNTS).sum()) if self.marked else len(parts[0])
                    if split == "train":
                        piece.unigram += np.bincount(parts[0], minlength=self.vocab_size)
                piece.documents += len(texts)
                piece.bytes += size
                tick(len(read), size, sum(map(len, encoded[0])))
        for file in (file for each in files.values() for file in each):
            if file.path.stat().st_size:
                piece.checksums[file.path.name] = file.checksum()
            else:
                file.path.unlink()
        return piece

    def _files(self, split: str, number: int) -> Iterator[_File]:
        """Create the file of the tokens and, if they have marks, that of the marks."""
        name = file_name(split, number)
        yield _File(self.out / name, self.dtype)
        if self.marked:
            yield _File(self.out / mark_name(name), np.dtype(np.uint8))

    def _encoded(self, texts: list[str]) -> tuple[int, list[list[np.ndarray]]]:
        """Return the bytes of the texts, the tokens of each and, if they have marks, the marks of each."""
        if not self.marked:
            return sum(len(text.encode()) for text in texts), [self.tokenizer.encode_documents(texts)]
        rendered = [from_text(text) for text in texts]
        encoded = [encode_row(row, self.tokenizer) for row in rendered]
        size = sum(len(row.text.encode()) for row in rendered)
        return size, [[each[part] for each in encoded] for part in (0, 1)]

    def _sides(self, texts: list[str]) -> dict[str, list[bool]]:
        found = [self.bounds.split(text.encode()) for text in texts]
        return {split: [each == split for each in found] for split in SPLITS}


def _encode_inline(job: Job, pieces: dict[int, range], show: Tick) -> Iterator[Piece]:
    totals = [0, 0, 0]

    def tick(*added: int) -> None:
        totals[:] = map(sum, zip(totals, added, strict=True))
        show(*totals)

    encoder = _Encoder(job)
    for number, rows in pieces.items():
        yield encoder.encode(number, rows, tick)


def _encode_in_processes(job: Job, pieces: dict[int, range], workers: int, show: Tick) -> Iterator[Piece]:
    # Spawn: a fork of a process that runs torch or holds a GPU can hang.
    context = multiprocessing.get_context("spawn")
    totals, stop = context.Array("q", 3), context.Event()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(job, totals, stop)
    ) as pool:
        pending = {pool.submit(_encode_in_worker, number, rows) for number, rows in pieces.items()}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    yield _result(future)
                # Read without the lock: a worker that was killed may still hold it.
                show(*totals.get_obj())
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future[Piece]) -> Piece:
    try:
        return future.result()
    except ValueError as error:
        # Raised in a worker process, whose traceback is lost.
        raise ValueError(str(error)) from None
    except BrokenProcessPool:
        raise ValueError(
            "a process that tokenises was killed, often because memory ran out: give a smaller data.workers"
        ) from None


# State of a worker process, created by `_start_worker` and shared by all its pieces.
_worker: tuple[_Encoder, Any, Any]


def _start_worker(job: Job, totals: Any, stop: Any) -> None:
    global _worker
    # Only the parent handles Ctrl-C, and stops the workers through `stop`. If the parent is killed, its
    # workers must not keep writing to a folder that the next run takes over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Hugging Face's tokenizers would start threads, but there is already one worker per core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = (_Encoder(job), totals, stop)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(number: int, rows: range) -> Piece:
    encoder, totals, stop = _worker

    def tick(*added: int) -> None:
        if stop.is_set():
            raise InterruptedError("the preparation was stopped")
        with totals.get_lock():
            for i, value in enumerate(added):
                totals[i] += value

    return encoder.encode(number, rows, tick)
