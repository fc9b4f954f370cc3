"""Prepared tokens on disk: a folder of raw token files behind one ``index.json``.

The files of a split, one after the other, are one stream of little-endian tokens. The index holds
``format``, ``version``, ``key`` (a hash of the settings that made it), ``source``, ``dtype``, ``vocab_size``
(pieces of the tokenizer beside it), ``bos``, ``eos``, ``documents``, ``bytes`` (of text) and, per split, the
list of ``{"file", "tokens"}``. ``unigram.npy`` counts every piece in the training tokens, int64 [vocab_size].
"""

from __future__ import annotations

import json
import operator
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from caat.arrays import map_array

FORMAT = "caat-tokens"
VERSION = 1
SPLITS = ("train", "validation")


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest little-endian type that holds the tokens 0 to ``vocab_size`` - 1."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def file_name(split: str, number: int) -> str:
    """The token file of piece ``number`` of the corpus."""
    return f"{split}-{number:05d}.bin"


def read_index(folder: Path) -> dict[str, Any]:
    """The index of ``folder``; raises ``ValueError`` if it is missing, corrupt or of another version."""
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give a folder made by `caat tokenize`"
        ) from error
    except ValueError as error:
        raise _corrupt(folder, error) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of token shards: give a folder made by `caat tokenize`")
    if index.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {index.get('version')}, expected {VERSION}: "
            f"remove the folder {folder} and prepare it again"
        )
    missing = {"dtype", "vocab_size", "bos", "eos", "documents", "bytes", "key", *SPLITS} - index.keys()
    if missing:
        raise _corrupt(folder, f"no {', '.join(sorted(missing))}")
    return index


def read_unigram(folder: Path, vocab_size: int) -> np.ndarray:
    """How often each piece is in the training tokens, [vocab_size]; ``ValueError`` if missing or damaged."""
    path = folder / "unigram.npy"
    try:
        counts = map_array(path)
        good = counts.dtype == np.int64 and counts.shape == (vocab_size,) and bool((counts >= 0).all())
        problem = "" if good else f"holds no counts of {vocab_size:,} pieces"
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
    """One split of a prepared folder as one stream of ``len(shards)`` tokens.

    Opening reads the index and asks the file system for the size of every file; a file is mapped into
    memory at its first use. Raises ``ValueError`` for a broken index and a missing or truncated file.
    """

    def __init__(self, folder: Path | str, split: str) -> None:
        assert split in SPLITS, split
        self.folder = Path(folder)
        self.split = split
        index = read_index(self.folder)
        self.vocab_size: int = index["vocab_size"]
        self.bos: int = index["bos"]
        self.eos: int = index["eos"]
        try:
            self.dtype = np.dtype(index["dtype"]).newbyteorder("<")
            self._files = [self.folder / entry["file"] for entry in index[split]]
            self._starts = [0, *accumulate(operator.index(entry["tokens"]) for entry in index[split])]
        except (KeyError, TypeError) as error:
            raise _corrupt(self.folder, error) from error
        self._maps: dict[int, np.ndarray] = {}
        for number, path in enumerate(self._files):
            self._check_size(path, self._starts[number + 1] - self._starts[number])

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, length: int) -> np.ndarray:
        """The tokens [start, start + length) as int64 [length], across file borders where need be.

        Raises ``ValueError`` for one that the tokenizer does not have.
        """
        stop = start + length
        assert 0 <= start <= stop <= len(self), (start, length, len(self))
        out = np.empty(length, dtype=np.int64)
        number = bisect_right(self._starts, start) - 1
        at = start
        while at < stop:
            first, last = self._starts[number], min(self._starts[number + 1], stop)
            out[at - start : last - start] = self._map(number)[at - first : last - first]
            at, number = last, number + 1
        if length and (largest := out.max()) >= self.vocab_size:
            raise ValueError(
                f"the {self.split} tokens [{start:,}, {stop:,}) in {self.folder} hold {largest}, and its "
                f"tokenizer has 0 to {self.vocab_size - 1}: remove the folder and prepare it again"
            )
        return out

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            self._maps[number] = np.memmap(self._files[number], dtype=self.dtype, mode="r")
        return self._maps[number]

    def _check_size(self, path: Path, tokens: int) -> None:
        try:
            size = path.stat().st_size
        except OSError as error:
            found = error.strerror
        else:
            if size == tokens * self.dtype.itemsize:
                return
            found = f"{size:,} bytes"
        raise ValueError(
            f"{path} should hold {tokens * self.dtype.itemsize:,} bytes of tokens, but: {found}. "
            f"Remove the folder {self.folder} and prepare it again"
        )
