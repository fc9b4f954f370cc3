"""state.json: training state, kinds of optimizer state, and a checksum of every file including itself.

Format 2 describes the optimizer under ``optimizer``. Format 1, which has no ``format``, supported only AdamW:
its ``adam_steps``, and files of its two moments. Both can be read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from caat.storage.durable import write_json
from caat.storage.records import Size, Whole, parse_record
from conf.checks import require

FORMAT = 2
# Those of AdamW, the only optimizer in format 1.
FORMAT_1_KINDS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class State:
    """The training state after ``step`` steps."""

    step: Whole
    # Tokens trained on so far, and sequences consumed of the data's order.
    tokens: Whole
    position: Whole
    # The position counts sequences of this length, in the order of this seed, of this data.
    sequence: Whole
    seed: Whole
    data: str
    # The seed of the order itself, which islands that join derive from their names; None: not known.
    order: Whole | None = None
    # train.documents: what attends to what in a sequence of several documents.
    documents: str = "packed"
    skipped: Whole = 0
    skipped_in_a_row: Whole = 0
    # States of random generators in hexadecimal, by device. Training does not use them so far.
    random: dict[str, str] = field(default_factory=dict)
    # Whether elapsed time was the only reason to save, and not the step, the end or a signal.
    by_time: bool = False


@dataclass(frozen=True)
class SavedKind:
    """A :class:`~caat.optim.kinds.StateKind` in a checkpoint; ``copies`` is 1, or the number of islands."""

    name: str
    copies: Size


@dataclass(frozen=True)
class SavedOptimizer:
    """The optimizer of a checkpoint: its steps, skipped ones not counted, and its kinds of state."""

    name: str
    steps: Whole
    kinds: tuple[SavedKind, ...]
    # Describes the run, if messages between replicas or islands keep something from step to step; else empty.
    data_sync: str = ""


@dataclass(frozen=True)
class _Checksums:
    """The fields of state.json that every checkpoint has."""

    xxh3_128: dict[str, str]
    state_xxh3_128: str
    format: Size = 1


@dataclass(frozen=True)
class _Format1:
    adam_steps: Whole


@dataclass(frozen=True)
class _Format2:
    optimizer: SavedOptimizer


CHECKSUMS = {each.name for each in fields(_Checksums)}


def write_state(folder: Path, state: State, optimizer: SavedOptimizer, checksums: dict[str, str]) -> None:
    """Write state.json, durably."""
    _write(folder, {**asdict(state), "optimizer": asdict(optimizer)}, checksums)


def write_checksums(folder: Path, checksums: dict[str, str]) -> None:
    """Write the state.json of a checkpoint that holds only weights, durably."""
    _write(folder, {}, checksums)


def read_state(folder: Path) -> tuple[State, dict[str, str]]:
    """Return the state, and the checksums by file name.

    Raises ``ValueError`` if state.json is missing or damaged, or training cannot resume from the checkpoint.
    """
    content, checksums = _read(folder)
    if json.loads(content).keys() <= CHECKSUMS:
        raise ValueError(
            f"{folder} holds only weights, nothing to resume: start a new run from them with "
            f"initialize={folder}"
        )
    # Checked here too, so that a checkpoint is rejected before any process starts.
    _optimizer(content, folder / "state.json")
    return parse_record(content, State, folder / "state.json"), checksums


def read_optimizer(folder: Path) -> SavedOptimizer:
    """Return the checkpoint's description of its optimizer. Raises ``ValueError`` like :func:`read_state`."""
    return _optimizer(_read(folder)[0], folder / "state.json")


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksums by file name. Raise ``ValueError`` if state.json is missing or damaged."""
    return _read(folder)[1]


def read_checked(path: Path) -> bytes:
    """Read a small file of a checkpoint and verify it, before all files are verified.

    Raises ``ValueError`` if it cannot be read or does not match the checksum in state.json. Folders without
    state.json have no checksums.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if (path.parent / "state.json").is_file():
        require(
            read_checksums(path.parent).get(path.name) in (None, xxh3_128(content).hexdigest()),
            f"{path} is damaged: its content does not match the checksum in state.json. Restore the "
            "one that the model was trained with",
        )
    return content


def _write(folder: Path, state: dict[str, Any], checksums: dict[str, str]) -> None:
    values = {"format": FORMAT, **state, "xxh3_128": dict(sorted(checksums.items()))}
    write_json(folder / "state.json", {**values, "state_xxh3_128": _digest(values)})


def _read(folder: Path) -> tuple[bytes, dict[str, str]]:
    """Return the content of state.json, verified by its own checksum, and the checksums of other files."""
    path = folder / "state.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): the checkpoint is incomplete") from None
    found = parse_record(content, _Checksums, path)
    require(
        found.format <= FORMAT,
        f"{path} has format={found.format}, but this version of caat reads formats up to {FORMAT}: use the "
        "version that wrote it, or a later one",
    )
    values = json.loads(content)
    del values["state_xxh3_128"]
    if _digest(values) != found.state_xxh3_128:
        raise ValueError(f"{path} is damaged: its content does not match its own checksum")
    return content, found.xxh3_128


def _optimizer(content: bytes, path: Path) -> SavedOptimizer:
    if parse_record(content, _Checksums, path).format > 1:
        return parse_record(content, _Format2, path).optimizer
    kinds = tuple(SavedKind(name, copies=1) for name in FORMAT_1_KINDS)
    return SavedOptimizer("adamw", parse_record(content, _Format1, path).adam_steps, kinds)


def _digest(values: dict[str, Any]) -> str:
    return xxh3_128(json.dumps(values, sort_keys=True).encode()).hexdigest()
