"""The files of a checkpoint, and a writer of one safetensors file, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from xxhash import xxh3_128

from caat.optim.kinds import WEIGHT
from caat.parallel.sharding import FullTensors, Sharding
from caat.storage.durable import write_json
from caat.training.live import LiveState

# A kind is one file unless it exceeds FILE_BYTES, or several ranks can write files of at least SHARE_BYTES.
SHARE_BYTES = 64 * 2**20
FILE_BYTES = 4 * 2**30
# Numbers that are summed, hashed and written while they are in the CPU cache: 1 MiB.
BLOCK = 2**18


@dataclass(frozen=True)
class Content:
    """All tensors of one kind, or of the copy of it that an ``island`` has."""

    kind: str
    tensors: Sequence[FullTensors]
    island: int | None = None

    @property
    def stem(self) -> str:
        """The file's name without ``.safetensors``. All kinds use the same tensor names inside."""
        return stem(self.kind, self.island)


@dataclass(frozen=True)
class File:
    """One safetensors file: the tensors of ``content`` that it holds, and the rank that writes it."""

    name: str
    content: Content
    writer: int
    tensors: Sequence[FullTensors]


def plan_files(contents: Sequence[Content], world: int) -> list[File]:
    """Split each of ``contents`` into files of about equal size and distribute them over the ranks."""
    runs = [(content, run) for content in contents for run in _runs(content.tensors, world)]
    counts = Counter(content.stem for content, _ in runs)
    files: list[File] = []
    for content, run in runs:
        number = sum(file.content is content for file in files)
        name = file_name(content.stem, number, counts[content.stem])
        files.append(File(name, content, len(files) % world, run))
    return files


def _runs(tensors: Sequence[FullTensors], world: int) -> list[list[FullTensors]]:
    total = sum(each.bytes for each in tensors)
    count = max(1, -(-total // FILE_BYTES), min(world, total // SHARE_BYTES))
    runs: list[list[FullTensors]] = [[] for _ in range(count)]
    before = 0
    for each in tensors:
        runs[(before + each.bytes // 2) * count // total].append(each)
        before += each.bytes
    return [run for run in runs if run]


def stem(kind: str, island: int | None = None) -> str:
    if kind == WEIGHT.name:
        return "model"
    return f"optimizer.{kind}" if island is None else f"optimizer.{kind}.island-{island}"


def own_file_name(live: LiveState) -> str:
    """Return the name of the file that holds what only this process has, ``live.own_tensors()``."""
    return f"optimizer.data_sync.replica-{live.mesh.replica}.process-{live.mesh.tensor_rank}.safetensors"


def whole_tensor(name: str, shape: Sequence[int]) -> FullTensors:
    """Return a tensor that one process holds completely."""
    return FullTensors(name, (name,), (tuple(shape),), Sharding(0, tuple(shape[:1]), 1))


def file_name(stem: str, number: int, count: int) -> str:
    """Return Hugging Face's name of a file, with its number and their count if there are several."""
    part = "" if count == 1 else f"-{number + 1:05}-of-{count:05}"
    return f"{stem}{part}.safetensors"


def index_name(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def write_indices(folder: Path, files: Sequence[File]) -> dict[str, str]:
    """Write Hugging Face's index for contents in several files; return checksums by file name."""
    checksums = {}
    for stem in dict.fromkeys(file.content.stem for file in files):
        ours = [file for file in files if file.content.stem == stem]
        if len(ours) > 1:
            where = {name: file.name for file in ours for each in file.tensors for name in each.names}
            total = sum(each.bytes for file in ours for each in file.tensors)
            index = {"metadata": {"total_size": total}, "weight_map": where}
            checksums[index_name(stem)] = write_json(folder / index_name(stem), index)
    return checksums


class TensorFile:
    """A new safetensors file of float32 tensors, which are appended in order, in any number of strips."""

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
        """Append numbers, float32 on the CPU; return whether all of them are finite."""
        numbers = strip.contiguous().numpy().reshape(-1)
        self._left -= numbers.nbytes
        finite = True
        for start in range(0, len(numbers), BLOCK):
            block = numbers[start : start + BLOCK]
            with np.errstate(all="ignore"):
                # A non-finite term makes the sum non-finite. NumPy leaves the other cores to training.
                finite = finite and bool(np.isfinite(block.sum()))
            self._write(block.data.cast("B"))
        return finite

    def close(self) -> str:
        """Make the file durable and return its checksum."""
        assert self._left == 0, self._left
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Close the file after an error, so that deleting it frees its space."""
        with suppress(OSError):
            self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)
