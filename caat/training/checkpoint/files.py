"""Which files a checkpoint has, and one safetensors file written tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from xxhash import xxh3_128

from caat.parallel.sharding import FullTensors
from caat.storage.durable import write_json

# File names before ".safetensors", by kind of tensor. All use the same Hugging Face names inside.
STEMS = {"weight": "model", "exp_avg": "optimizer.exp_avg", "exp_avg_sq": "optimizer.exp_avg_sq"}
# A kind is one file, unless there are ranks to share files of at least SHARE_BYTES, or it is over FILE_BYTES.
SHARE_BYTES = 64 * 2**20
FILE_BYTES = 4 * 2**30
# Numbers that are summed, hashed and written while they are in the processor's cache: 1 MiB.
BLOCK = 2**18


@dataclass(frozen=True)
class File:
    """One safetensors file: what is in it and which rank writes it."""

    name: str
    kind: str
    writer: int
    contents: Sequence[FullTensors]


def plan_files(tensors: Sequence[FullTensors], world: int) -> list[File]:
    """Runs of ``tensors`` of about equal bytes, for each kind, spread over the ranks."""
    total = sum(each.bytes for each in tensors)
    count = max(1, -(-total // FILE_BYTES), min(world, total // SHARE_BYTES))
    runs: list[list[FullTensors]] = [[] for _ in range(count)]
    before = 0
    for each in tensors:
        runs[(before + each.bytes // 2) * count // total].append(each)
        before += each.bytes
    runs = [run for run in runs if run]
    places = [(kind, number) for kind in STEMS for number in range(len(runs))]
    return [
        File(file_name(kind, number, len(runs)), kind, i % world, runs[number])
        for i, (kind, number) in enumerate(places)
    ]


def file_name(kind: str, number: int, count: int) -> str:
    """Hugging Face's: with the number and the count if there are several."""
    part = "" if count == 1 else f"-{number + 1:05}-of-{count:05}"
    return f"{STEMS[kind]}{part}.safetensors"


def index_name(kind: str) -> str:
    return f"{STEMS[kind]}.safetensors.index.json"


def write_indices(folder: Path, files: Sequence[File]) -> dict[str, str]:
    """Hugging Face's index of every kind that has several files; returns checksums by file name."""
    checksums = {}
    for kind in STEMS:
        ours = [file for file in files if file.kind == kind]
        if len(ours) > 1:
            where = {name: file.name for file in ours for each in file.contents for name in each.names}
            total = sum(each.bytes for file in ours for each in file.contents)
            index = {"metadata": {"total_size": total}, "weight_map": where}
            checksums[index_name(kind)] = write_json(folder / index_name(kind), index)
    return checksums


class TensorFile:
    """A new safetensors file of float32 tensors, given in order, each in as many strips as wanted."""

    def __init__(self, path: Path, contents: Sequence[FullTensors]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for each in contents:
            for name, shape in zip(each.names, each.shapes, strict=True):
                start, end = end, end + 4 * prod(shape)
                header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._left = end
        self._hash = xxh3_128()
        self._file = path.open("xb")
        self._write(len(text).to_bytes(8, "little") + text)

    def append(self, strip: Tensor) -> bool:
        """The next numbers, float32 on the CPU; returns whether all of them are finite."""
        numbers = strip.contiguous().numpy().reshape(-1)
        self._left -= numbers.nbytes
        finite = True
        for start in range(0, len(numbers), BLOCK):
            block = numbers[start : start + BLOCK]
            with np.errstate(all="ignore"):
                # A sum is not finite if any of its terms is not. NumPy's leaves the other cores to training.
                finite = finite and bool(np.isfinite(block.sum()))
            self._write(block.data.cast("B"))
        return finite

    def close(self) -> str:
        """Make the file durable; returns its checksum."""
        assert self._left == 0, self._left
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """After an error: let go of the file, and of the space it takes once it is deleted."""
        with suppress(OSError):
            self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)
