"""Save checkpoints: copy the state between two steps, write it during training, publish it atomically."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from caat.data.tokenizer import tokenizer_files
from caat.optim.kinds import WEIGHT, StateKind
from caat.parallel.sharding import FullTensors
from caat.storage.disk import disk_problem
from caat.storage.durable import write_bytes, write_json
from caat.supervision.control import Control
from caat.training.checkpoint import folder as folders
from caat.training.checkpoint.after import After
from caat.training.checkpoint.architecture import Architecture
from caat.training.checkpoint.exchange import Exchange, Held, Turn
from caat.training.checkpoint.files import (
    Content,
    TensorFile,
    own_file_name,
    plan_files,
    whole_tensor,
    write_indices,
)
from caat.training.checkpoint.pace import Pace
from caat.training.checkpoint.snapshot import Snapshot
from caat.training.checkpoint.state import SavedKind, SavedOptimizer, State, write_state
from caat.training.live import Fragment, LiveState
from conf.schema import CheckpointConfig


class SaveError(RuntimeError):
    """A checkpoint could not be written. The message names rank and cause; earlier checkpoints are intact."""


class _NotFinite(Exception):
    """The weights or the optimizer state hold nan or inf."""


class _Copied(NamedTuple):
    """The state to write: what ranks send each other, and what only this process holds, by name."""

    held: Held
    own: dict[str, Tensor]


# Problems with this rank's disk, memory or numbers: the other ranks are told, and training continues.
LOCAL_PROBLEMS = (OSError, MemoryError, RuntimeError, _NotFinite)
BEAT_SECONDS = 1.0


class Saver:
    """Writes checkpoints of a run; all ranks take part.

    ``live`` is this rank's part of weights and optimizer state, ``architecture()`` the current architecture.
    ``beat`` is called in the main thread when it waits for a save, and ``tick`` while that makes progress,
    however long it takes. Messages use a separate process group, so they cannot be mixed up with those of
    training.
    """

    def __init__(
        self,
        checkpoints: Path,
        tensors: Sequence[FullTensors],
        architecture: Callable[[], Architecture],
        tokenizer: Path,
        *,
        live: LiveState,
        settings: CheckpointConfig,
        beat: Callable[[str], None] = lambda doing: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.checkpoints, self.settings = checkpoints, settings
        self._beat, self._tick, self._written = beat, tick, 0
        self._pace = Pace(settings.minutes)
        self._tokenizer = tokenizer_files(tokenizer)
        self._live, self._architecture = live, architecture
        self._control = Control()
        self.after = After(settings.after, checkpoints)
        contents = [content for kind in live.kinds for content in _contents(kind, live, tensors)]
        self._files = plan_files(contents, self._control.world)
        ranges = {key: (held.start, held.size) for key, held in live.fragments().items()}
        self._bytes = sum(each.bytes for file in self._files for each in file.tensors)
        self._exchange = Exchange(self._files, ranges, live.mesh, self._control)
        self._snapshot = Snapshot(self._exchange.sent_by_me())
        self._thread: threading.Thread | None = None
        self._error: SaveError | None = None

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the save in flight has failed; :meth:`wait` raises the error."""
        return self._error is not None

    @property
    def due(self) -> bool:
        """Whether a save by time is due, by this rank's clock; False while a save is being written."""
        return self._pace.due and not (self._thread is not None and self._thread.is_alive())

    def save(self, state: State) -> None:
        """Save the current training state. Collective.

        If asynchronous, wait for an earlier save, copy the state and return. Raises :class:`SaveError` on all
        ranks if the earlier save failed, or this one if it is not asynchronous.
        """
        self.wait()
        self._pace.begin()
        with self._pace.standing():
            architecture, optimizer, copied = self._architecture(), _describe(self._live), self._copy()
        self._thread = threading.Thread(
            target=self._write,
            args=(state, optimizer, architecture, copied),
            name=f"checkpoint {state.step}",
            # A failed run must be able to exit.
            daemon=True,
        )
        self._thread.start()
        if not self.settings.asynchronous:
            self.wait()

    def _copy(self) -> _Copied | Exception:
        """Copy what training changes, or return what prevented it: the ranks agree in :meth:`_begin`."""
        try:
            fragments = self._live.fragments()
            held = self._snapshot.take(fragments) if self.settings.asynchronous else _in_place(fragments)
            own = {name: live.float().cpu().clone() for name, live in self._live.own_tensors().items()}
            return _Copied(held, own)
        except LOCAL_PROBLEMS as error:
            return error

    def wait(self) -> None:
        """Wait for the save in flight. Raise :class:`SaveError` on all ranks if the last save failed."""
        if self._thread is not None:
            # One beat, as on every rank: all must beat equally often, but each sees only its own progress.
            self._beat(f"waiting for {self._thread.name} to be on disk")
            seen = self._written
            with self._pace.standing():
                while self._thread.is_alive():
                    self._thread.join(BEAT_SECONDS)
                    if seen != self._written:
                        seen = self._written
                        self._tick()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for the save in flight to end, whether it succeeds or fails."""
        with suppress(SaveError):
            self.wait()

    def _write(
        self,
        state: State,
        optimizer: SavedOptimizer,
        architecture: Architecture,
        copied: _Copied | Exception,
    ) -> None:
        """Write the files, in the save's thread. The ranks agree on the outcome: all or none have failed."""
        # Only use CPU time that training leaves. Only Linux has priorities per thread.
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        folder = self.checkpoints / folders.checkpoint_name(state.step)
        aside = folder.with_name(f"{folder.name}.tmp")
        try:
            self._together(lambda: self._begin(aside, copied))
            assert isinstance(copied, _Copied)
            held, own = copied
            self._together(self._exchange.allocate)
            checksums: dict[str, str] = {}
            for part in self._together(lambda: self._write_files(aside, held)):
                checksums |= part
            for part in self._together(lambda: self._write_own(aside, own)):
                checksums |= part
            checksums |= self._together(lambda: self._write_small(aside, architecture))[0]
            self._together(lambda: self._publish(aside, folder, state, optimizer, checksums))
        except SaveError as error:
            # Remove the incomplete files: the disk may be full.
            shutil.rmtree(aside, ignore_errors=True)
            self._error = error
        except Exception as error:
            # Another rank has died, so this run is about to end.
            self._error = SaveError(f"rank {self._control.rank}: {error}")
        finally:
            self._exchange.release()
            self._pace.worked(time.thread_time())

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """Return ``work()`` of every rank. Raise :class:`SaveError` on all of them if it fails on one."""
        result, problem = None, None
        try:
            result = work()
        except OSError as error:
            problem = disk_problem(error, self.checkpoints, self._bytes)
        except LOCAL_PROBLEMS as error:
            problem = str(error)
        outcomes = self._control.gather((result, problem))
        problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(outcomes) if text]
        if problems:
            raise SaveError("; ".join(problems))
        return [result for result, _ in outcomes]

    def _begin(self, aside: Path, copied: _Copied | Exception) -> None:
        """Raise what prevented the copy; create the folder on the first rank."""
        if isinstance(copied, Exception):
            raise copied
        if self._control.rank == 0:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            folders.clear_leftovers(self.checkpoints)
            aside.mkdir()

    def _write_files(self, aside: Path, held: Held) -> dict[str, str]:
        """Write this rank's files, tensor by tensor as they arrive, and return their checksums."""
        checksums, open_file, problem = {}, None, None
        for turns in self._exchange.rounds:
            arrived = self._exchange.run(turns, held)
            self._written += 1
            # A rank that cannot write keeps receiving, because others wait until their messages are sent.
            if arrived is None or problem is not None:
                continue
            turn, parts = arrived
            try:
                if turn.tensors is turn.file.tensors[0]:
                    open_file = TensorFile(aside / turn.file.name, turn.file.tensors)
                assert open_file is not None
                _append(open_file, turn, parts)
                if turn.tensors is turn.file.tensors[-1]:
                    checksums[turn.file.name] = open_file.close()
            except LOCAL_PROBLEMS as error:
                problem = error
        if open_file is not None and problem is not None:
            open_file.abandon()
        if problem is not None:
            raise problem
        return checksums

    def _write_own(self, aside: Path, own: dict[str, Tensor]) -> dict[str, str]:
        """Write what only this process holds, and return the checksum."""
        if not self._live.own_layout:
            return {}
        name = own_file_name(self._live)
        file = TensorFile(aside / name, [whole_tensor(key, values.shape) for key, values in own.items()])
        try:
            for key, values in own.items():
                if not file.append(values):
                    raise _NotFinite(f"{key} in {name} holds nan or inf")
            return {name: file.close()}
        except LOCAL_PROBLEMS:
            file.abandon()
            raise

    def _write_small(self, aside: Path, architecture: Architecture) -> dict[str, str]:
        """Write the other files, on the first rank, and return their checksums."""
        if self._control.rank > 0:
            return {}
        checksums = write_indices(aside, self._files)
        checksums["config.json"] = write_json(aside / "config.json", architecture.to_json())
        for name, content in self._tokenizer.items():
            checksums[name] = write_bytes(aside / name, content)
        return checksums

    def _publish(
        self, aside: Path, folder: Path, state: State, optimizer: SavedOptimizer, checksums: dict[str, str]
    ) -> None:
        """Publish the checkpoint, on the first rank, once all files are on disk."""
        if self._control.rank > 0:
            return
        write_state(aside, state, optimizer, checksums)
        folders.publish(aside, folder)
        self.after.start(folder)
        self.retain()

    def retain(self) -> None:
        """Delete the checkpoints that are not to be kept, on the first rank."""
        c = self.settings
        folders.retain(self.checkpoints, c.keep, c.keep_every, spare=self.after.unfinished)


def _contents(kind: StateKind, live: LiveState, tensors: Sequence[FullTensors]) -> list[Content]:
    """Return the contents to save of a kind: one for all, or one for each island."""
    copies = kind.copies(live.mesh.islands.processes)
    return [Content(kind.name, tensors, island if copies > 1 else None) for island in range(copies)]


def _describe(live: LiveState) -> SavedOptimizer:
    kinds = tuple(
        SavedKind(kind.name, kind.copies(live.mesh.islands.processes))
        for kind in live.kinds
        if kind != WEIGHT
    )
    return SavedOptimizer(live.optimizer.name, live.optimizer.steps, kinds, live.own_layout)


def _in_place(fragments: dict[tuple[str, str], Fragment]) -> Held:
    return lambda name, kind: fragments[name, kind].numbers.cpu()


def _append(file: TensorFile, turn: Turn, parts: Sequence[Tensor]) -> None:
    for number in range(len(turn.tensors.names)):
        for strip in turn.tensors.strips(number, parts):
            if not file.append(strip):
                raise _NotFinite(f"{turn.file.content.kind} of {turn.tensors.names[number]} holds nan or inf")
