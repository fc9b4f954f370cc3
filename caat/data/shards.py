"""Prepared tokens on disk: a folder of raw token files behind one ``index.json``.

The files of a split, concatenated, form one stream of little-endian tokens. :class:`Index` describes the
index. If not every token counts as a target, further files hold a byte for each token, its mark
(`caat.data.marks`). ``unigram.npy`` counts each piece in the training tokens, int64 [vocab_size].
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, count
from pathlib import Path
from typing import Literal

import numpy as np

from caat.data.marks import BEGINS, BLOCK, marks_of_text
from caat.storage.arrays import map_array
from caat.storage.checksums import wrong_files
from caat.storage.records import Size, Whole, parse_record

FORMAT = "caat-tokens"
VERSION = 1
# Token files that a process maps at once: each takes a file descriptor, and a process often has only 1024.
MOST_MAPPED = 256
# Numbers the open splits of this process.
OPENED = count()
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TokenFile:
    file: str
    tokens: Whole


@dataclass(frozen=True)
class Index:
    """Content of ``index.json``. ``key`` is a hash of the settings; ``bytes`` is the size of the text."""

    format: Literal["caat-tokens"]
    version: Literal[1]
    key: str
    dtype: Literal["uint16", "uint32"]
    # Number of pieces of the folder's tokenizer, and the tokens that begin and end a document.
    vocab_size: Size
    bos: Whole
    eos: Whole
    documents: Whole
    bytes: Whole
    train: list[TokenFile]
    validation: list[TokenFile]
    # Empty unless data.test was set.
    test: list[TokenFile] = field(default_factory=list)
    source: str = ""
    # What a document is made of: data.format. All tokens of a text count as targets.
    rows: Literal["text", "prompt", "chat"] = "text"
    # Hash of the template of chats, and the number of tokens that count by split. Empty for text.
    template: str = ""
    counted: dict[str, Whole] = field(default_factory=dict)
    # Checksum of every other file by name. Empty for folders prepared by versions without checksums.
    xxh3_128: dict[str, str] = field(default_factory=dict)

    def files(self, split: str) -> list[TokenFile]:
        assert split in SPLITS, split
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.test else SPLITS[:-1]

    def tokens(self, split: str) -> int:
        return sum(each.tokens for each in self.files(split))


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the narrowest little-endian type that holds the tokens 0 to ``vocab_size`` - 1."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def file_name(split: str, number: int) -> str:
    """Return the name of the token file of piece ``number`` of the corpus."""
    return f"{split}-{number:05d}.bin"


def mark_name(file: str) -> str:
    """Return the name of the file that holds the marks of the tokens in ``file``, a byte each."""
    return Path(file).with_suffix(".marks").name


def read_index(folder: Path) -> Index:
    """Read the index of ``folder``. Raise ``ValueError`` if it is missing, corrupt or of another version."""
    path = folder / "index.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give a folder made by `caat tokenize`"
        ) from error
    try:
        index = parse_record(content, Index, path)
        widest = token_dtype(index.vocab_size)
    except ValueError as error:
        raise ValueError(f"{error}: give a folder made by `caat tokenize`, or prepare it again") from None
    if widest.itemsize > np.dtype(index.dtype).itemsize:
        raise _corrupt(folder, f"dtype={index.dtype} does not hold vocab_size={index.vocab_size}")
    for name in (*index.xxh3_128, *(each.file for split in SPLITS for each in index.files(split))):
        if Path(name).name != name:
            raise _corrupt(folder, f"{name} is not a file in its folder")
    return index


def check_content(folder: Path, rank: int = 0, world: int = 1) -> bool:
    """Verify this rank's share of the files in ``folder`` against the checksums in the index.

    Returns False if the index has no checksums, as in folders of older versions. Raises ``ValueError`` for
    files that are missing or have changed since they were written, the tokenizer included.
    """
    checksums = read_index(folder).xxh3_128
    if problems := wrong_files(folder, checksums, "index.json", rank=rank, world=world):
        raise ValueError(
            f"{folder} is damaged: {'; '.join(problems)}. Remove the folder and prepare it again, or restore "
            "the original files"
        )
    return bool(checksums)


def read_unigram(folder: Path, vocab_size: int) -> np.ndarray:
    """Return the count of each piece in the training tokens, [vocab_size].

    Raises ``ValueError`` if the file is missing or damaged.
    """
    path = folder / "unigram.npy"
    try:
        counts = map_array(path)
        good = counts.dtype == np.int64 and counts.shape == (vocab_size,) and bool((counts >= 0).all())
        problem = "" if good else f"does not hold the counts of {vocab_size:,} pieces"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{path} {problem}: remove the folder {folder} and prepare it again")
    return np.array(counts)


def _corrupt(folder: Path, reason: object) -> ValueError:
    return ValueError(
        f"{folder / 'index.json'} is corrupt ({reason}): remove the folder {folder} and prepare it again"
    )


class TokenShards:
    """One split of a prepared folder as a single stream of ``len(shards)`` tokens.

    The constructor reads the index and checks the size of every file; files are memory-mapped at first use.
    Raises ``ValueError`` for a corrupt index or a missing or truncated file.
    """

    def __init__(self, folder: Path | str, split: str) -> None:
        assert split in SPLITS, split
        self.folder = Path(folder)
        self.split = split
        index = read_index(self.folder)
        self.vocab_size, self.bos, self.eos = index.vocab_size, index.bos, index.eos
        self.dtype = np.dtype(index.dtype).newbyteorder("<")
        self._files = [self.folder / each.file for each in index.files(split)]
        self._starts = [0, *accumulate(each.tokens for each in index.files(split))]
        # Whether some tokens do not count as targets.
        self.marked = index.rows != "text"
        self._opened = next(OPENED)
        for path, first, last in zip(self._files, self._starts, self._starts[1:], strict=False):
            self._check_size(path, (last - first) * self.dtype.itemsize, "tokens")
            if self.marked:
                self._check_size(path.with_name(mark_name(path.name)), last - first, "marks")

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, length: int) -> np.ndarray:
        """Return the tokens [start, start + length) as int64 [length]; the range may span several files.

        Raises ``ValueError`` for a token outside the vocabulary.
        """
        out = np.empty(length, dtype=np.int64)
        self._read(out, start, self._files, self.dtype)
        if length and (largest := out.max()) >= self.vocab_size:
            raise ValueError(
                f"the {self.split} tokens [{start:,}, {start + length:,}) in {self.folder} hold {largest}, "
                f"but its tokenizer has 0 to {self.vocab_size - 1}: remove the folder and prepare it again"
            )
        return out

    def marks(self, start: int, length: int) -> np.ndarray:
        """Return the marks of the tokens [start, start + length), uint8 [length]."""
        if not self.marked:
            return marks_of_text(self.read(start, length), self.bos, self.eos)
        out = np.empty(length, dtype=np.uint8)
        files = [path.with_name(mark_name(path.name)) for path in self._files]
        self._read(out, start, files, out.dtype)
        return out

    def _read(self, out: np.ndarray, start: int, files: list[Path], dtype: np.dtype) -> None:
        """Fill ``out`` from ``files``, which hold one number of ``dtype`` for each token of the stream."""
        stop = start + len(out)
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        number = bisect_right(self._starts, start) - 1
        at = start
        while at < stop:
            first, last = self._starts[number], min(self._starts[number + 1], stop)
            out[at - start : last - start] = _mapped(self._opened, files[number], dtype)[
                at - first : last - first
            ]
            at, number = last, number + 1

    def _check_size(self, path: Path, expected: int, what: str) -> None:
        try:
            size = path.stat().st_size
        except OSError as error:
            found = error.strerror
        else:
            if size == expected:
                return
            found = f"{size:,} bytes"
        raise ValueError(
            f"{path} should hold {expected:,} bytes of {what} (found: {found}). "
            f"Remove the folder {self.folder} and prepare it again"
        )


@lru_cache(MOST_MAPPED)
def _mapped(opened: int, path: Path, dtype: np.dtype) -> np.ndarray:
    """Map a file of the split with the number ``opened``: another one of this process may be a newer file."""
    return np.memmap(path, dtype=dtype, mode="r")


def sequence_count(shards: TokenShards, sequence: int) -> int:
    """Return the number of whole sequences in the split. Raise ``ValueError`` if there is none."""
    count = (len(shards) - 1) // sequence
    if count < 1:
        raise ValueError(
            f"the {shards.split} split of {shards.folder} has {len(shards):,} tokens, fewer than one "
            f"sequence of train.sequence={sequence} plus a last target: lower train.sequence, give more text"
            + ("" if shards.split == "train" else f", or raise data.{shards.split}")
        )
    return count


def cut_rows(shards: TokenShards, sequence: int) -> tuple[int, int]:
    """Return the number of rows in ``shards``, and how many are cut where a sequence ends."""
    rows = cut = last = 0
    end = sequence * sequence_count(shards, sequence)
    # A whole number of sequences at a time.
    block = sequence * max(1, BLOCK // sequence)
    for first in range(0, len(shards), block):
        begins = shards.marks(first, min(block, len(shards) - first)) & BEGINS > 0
        number = rows + begins.cumsum()
        # A sequence that begins within a row holds the rest of it, or a part if the row is longer.
        starts = slice(0, max(0, end - first), sequence)
        within = np.unique(number[starts][~begins[starts]])
        cut += within.size - (within.size > 0 and within[0] == last)
        last = int(within[-1]) if within.size else last
        rows += int(begins.sum())
    return rows, cut
