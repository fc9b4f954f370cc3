"""state.json: where training stood, what the optimizer keeps, and a checksum of every file, its own included.

Format 2 describes the optimizer under ``optimizer``. Format 1, which has no ``format``, knew AdamW alone:
its ``adam_steps``, and files of its two moments. Both are read.
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
# AdamW's, the only optimizer at that time.
FORMAT_1_KINDS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class State:
    """Where training stands after ``step`` steps."""

    step: Whole
    # Trained on so far, and sequences of the data's order consumed.
    tokens: Whole
    position: Whole
    # What the position counts: sequences of this length, in the order of this seed, of this data.
    sequence: Whole
    seed: Whole
    data: str
    skipped: Whole = 0
    skipped_in_a_row: Whole = 0
    # Generator states in hexadecimal, by device. Training draws nothing from them so far.
    random: dict[str, str] = field(default_factory=dict)
    # Why it was saved: for the time that had gone by, and neither its step, the end nor a signal.
    by_time: bool = False


@dataclass(frozen=True)
class SavedKind:
    """A :class:`~caat.optim.kinds.StateKind` in a checkpoint; ``copies``: 1, or one for each replica."""

    name: str
    shared: bool
    shaped: bool
    copies: Size


@dataclass(frozen=True)
class SavedOptimizer:
    """The optimizer of a checkpoint: its steps, skipped ones not counted, and what it kept."""

    name: str
    steps: Whole
    kinds: tuple[SavedKind, ...]


@dataclass(frozen=True)
class _Checksums:
    """The part of state.json that every checkpoint has."""

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
    """Write the state.json of a checkpoint that holds weights alone, durably."""
    _write(folder, {}, checksums)


def read_state(folder: Path) -> tuple[State, dict[str, str]]:
    """The state and the checksums by file name.

    Raises ``ValueError`` if state.json is missing, damaged, or not of a checkpoint that training can resume.
    """
    content, checksums = _read(folder)
    if json.loads(content).keys() <= CHECKSUMS:
        raise ValueError(
            f"{folder} holds weights alone, nothing to resume: start a new run from them with "
            f"initialize={folder}"
        )
    # Looked at here as well: a checkpoint is refused before any process starts.
    _optimizer(content, folder / "state.json")
    return parse_record(content, State, folder / "state.json"), checksums


def read_optimizer(folder: Path) -> SavedOptimizer:
    """What the checkpoint holds of its optimizer; raises ``ValueError`` as :func:`read_state`."""
    return _optimizer(_read(folder)[0], folder / "state.json")


def read_checksums(folder: Path) -> dict[str, str]:
    """By file name; raises ``ValueError`` if state.json is missing or damaged."""
    return _read(folder)[1]


def read_checked(path: Path) -> bytes:
    """A small file of a checkpoint, which is believed before all files are verified.

    Raises ``ValueError`` if it cannot be read, or does not have the checksum in state.json; weights of the
    user's own have none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if (path.parent / "state.json").is_file():
        require(
            read_checksums(path.parent).get(path.name) in (None, xxh3_128(content).hexdigest()),
            f"{path} is damaged: its content does not have the checksum in state.json. Put back the "
            "one that the model was trained with",
        )
    return content


def _write(folder: Path, state: dict[str, Any], checksums: dict[str, str]) -> None:
    values = {"format": FORMAT, **state, "xxh3_128": dict(sorted(checksums.items()))}
    write_json(folder / "state.json", {**values, "state_xxh3_128": _digest(values)})


def _read(folder: Path) -> tuple[bytes, dict[str, str]]:
    """The content of state.json, which has the checksum that it names, and the checksums in it."""
    path = folder / "state.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): the checkpoint is not whole") from None
    found = parse_record(content, _Checksums, path)
    require(
        found.format <= FORMAT,
        f"{path} has format={found.format}, and this version of caat reads formats up to {FORMAT}: use the "
        "version that wrote it, or a later one",
    )
    values = json.loads(content)
    del values["state_xxh3_128"]
    if _digest(values) != found.state_xxh3_128:
        raise ValueError(f"{path} is damaged: its content does not have the checksum that it names")
    return content, found.xxh3_128


def _optimizer(content: bytes, path: Path) -> SavedOptimizer:
    if parse_record(content, _Checksums, path).format > 1:
        return parse_record(content, _Format2, path).optimizer
    kinds = tuple(SavedKind(name, shared=True, shaped=True, copies=1) for name in FORMAT_1_KINDS)
    return SavedOptimizer("adamw", parse_record(content, _Format1, path).adam_steps, kinds)


def _digest(values: dict[str, Any]) -> str:
    return xxh3_128(json.dumps(values, sort_keys=True).encode()).hexdigest()
