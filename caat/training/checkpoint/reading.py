"""Read checkpoints: verify checksums, and read only the slices that a process needs. Executes no code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caat.optim.kinds import WEIGHT, StateKind
from caat.parallel.sharding import FullTensors, Sliceable
from caat.storage.checksums import Tick, wrong_files
from caat.storage.records import read_record
from caat.supervision.control import Control
from caat.training.checkpoint.files import index_name, own_file_name, stem
from caat.training.checkpoint.state import read_checksums, read_optimizer
from caat.training.islands.kept import OWN_WEIGHT
from caat.training.live import LiveState
from conf.checks import require


@dataclass(frozen=True)
class _Index:
    """model.safetensors.index.json: the file of every tensor."""

    weight_map: dict[str, str]


class Tensors:
    """The full tensors in the files ``stem`` of a checkpoint, by Hugging Face name, read on demand.

    Raises ``ValueError`` if files or tensors are missing or damaged, or have an unexpected shape.
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        single = folder / f"{stem}.safetensors"
        index = folder / index_name(stem)
        if single.is_file():
            self._where = dict.fromkeys(self._open(single.name).keys(), single.name)
        elif index.is_file():
            self._where = read_record(index, _Index).weight_map
        else:
            raise ValueError(f"{folder} has no {single.name}: is it a whole checkpoint?")

    @property
    def names(self) -> list[str]:
        return list(self._where)

    def dtype(self, name: str) -> str:
        """Return the type by its name in safetensors: F32, BF16, ..."""
        return self._open(self._where[name]).get_slice(name).get_dtype()

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read the tensor and check that it has this shape."""
        self.check(name, shape)
        return self.whole(name)

    def whole(self, name: str) -> Tensor:
        """Read the tensor, whatever its shape."""
        return self._open(self._where[name]).get_tensor(name)

    def slices(self, name: str, shape: tuple[int, ...]) -> Sliceable:
        """Return the tensor, with this shape, for reading slices."""
        self.check(name, shape)
        return self._open(self._where[name]).get_slice(name)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless the tensor exists with this shape."""
        if name not in self._where:
            raise ValueError(f"{self._folder} has no tensor {name}: it belongs to another model")
        file = self._open(self._where[name])
        require(
            name in file.keys(),  # noqa: SIM118
            f"{self._folder / self._where[name]} has no tensor {name}, as the index says: it is damaged",
        )
        found = self._shape(name)
        require(
            found == tuple(shape),
            f"{self._folder}: {name} has shape {found} where config.json means {tuple(shape)}",
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open(self._where[name]).get_slice(name).get_shape())

    def _open(self, file: str):
        from safetensors import SafetensorError, safe_open

        if file not in self._files:
            try:
                self._files[file] = safe_open(self._folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{self._folder / file} is missing or damaged ({error})") from None
        return self._files[file]


def damage(folder: Path, control: Control, optimizer: bool = True, tick: Tick = lambda: None) -> list[str]:
    """Return the problems with the files of a checkpoint, one line each; none if all checksums match.

    ``optimizer``: include the optimizer state. ``tick`` is called for every block read. Each file is read
    once, by one of the ranks. Collective, with the same result on all ranks.
    """
    try:
        checksums = read_checksums(folder)
    except ValueError as error:
        checksums, unreadable = {}, [str(error)]
    else:
        unreadable = []
    names = [name for name in checksums if optimizer or not name.startswith("optimizer.")]
    listed = {name: checksums[name] for name in names}
    problems = wrong_files(folder, listed, "state.json", rank=control.rank, world=control.world, tick=tick)
    everyone = control.gather(unreadable + problems)
    return sorted({problem for problems in everyone for problem in problems})


def load_weights(
    model: nn.Module,
    tensors: Sequence[FullTensors],
    which: range,
    folder: Path,
    tick: Tick = lambda: None,
) -> None:
    """Fill the parameters of ``model``, which holds the shards ``which``, before DeepSpeed wraps it.

    ``tick`` is called for every parameter.
    """
    file = Tensors(folder)
    extra = set(file.names) - {name for each in tensors for name in each.names}
    require(
        not extra, f"{folder} has a tensor {min(extra, default='')} too many: it belongs to another model"
    )
    for each in tensors:
        each.fill(model.get_parameter(each.parameter).detach(), which, file.slices)
        tick()


def load_master_weights(
    live: LiveState, tensors: Sequence[FullTensors], folder: Path, tick: Tick = lambda: None
) -> None:
    """Fill this rank's part of the master weights, unless they are the model's weights themselves.

    ``tick`` is called for every parameter.
    """
    if live.rounded:
        _load(live, WEIGHT, Tensors(folder), tensors, tick)
        if live.islands is not None:
            live.islands.restart()


def load_optimizer(
    live: LiveState, tensors: Sequence[FullTensors], folder: Path, tick: Tick = lambda: None, *, step: int = 0
) -> list[str]:
    """Fill this rank's part of the optimizer state after ``step``, and set the number of its steps.

    ``tick`` is called for every parameter. Returns notes for the user on state that could not be resumed:
    kinds that only the checkpoint or only this run has, and kinds of which each island has its own copy, if
    their number has changed. Raises ``ValueError`` for the state of another optimizer.
    """
    saved, optimizer = read_optimizer(folder), live.optimizer
    require(
        saved.name == optimizer.name,
        f"{folder} holds the state of the optimizer {saved.name}, and this run uses {optimizer.name}: start "
        f"a new run from its weights with initialize={folder}",
    )
    copies = {kind.name: kind.copies for kind in saved.kinds}
    kinds = [kind for kind in live.kinds if kind != WEIGHT]
    unused = copies.keys() - {kind.name for kind in kinds}
    notes = [
        f"the optimizer's {name} in {folder} is not used: this run keeps none" for name in sorted(unused)
    ]
    for kind in kinds:
        found = copies.get(kind.name, 0)
        if problem := _misfit(kind, found, live, folder):
            start = "the common weights" if kind.name == OWN_WEIGHT else "zero"
            notes.append(f"the optimizer's {kind.name} starts from {start}: {problem}")
            continue
        # Each island loads its own copy. If there are fewer copies than islands, some load the same one.
        file = Tensors(folder, stem(kind.name, live.mesh.island % found if found > 1 else None))
        _load(live, kind, file, tensors, tick)
        if found != (wanted := kind.copies(live.mesh.islands.processes)):
            notes.append(
                f"the optimizer's {kind.name} was saved by {found} island{'s' * (found > 1)}, and this run "
                f"has {wanted}: islands take the saved copies in turn"
            )
    optimizer.steps = saved.steps
    # Turns and rounds count skipped steps too.
    optimizer.ended = step or saved.steps
    if live.islands is not None:
        live.islands.refresh()
    return notes + _load_own(live, saved.data_sync, folder, step)


def _load_own(live: LiveState, saved: str, folder: Path, step: int) -> list[str]:
    """Restore what only this process has; return a note if the layout has changed."""
    if saved == live.own_layout:
        if saved:
            file = Tensors(folder, own_file_name(live).removesuffix(".safetensors"))
            live.load_own({name: file.whole(name) for name in file.names}, step)
        return []
    if live.islands is not None:
        # Any process's file: what does not depend on the layout is the same in all.
        for path in sorted(folder.glob("optimizer.data_sync.*.safetensors"))[:1]:
            file = Tensors(folder, path.stem)
            always = set(live.islands.kept.always) & set(file.names)
            live.islands.kept.load({name: file.whole(name) for name in always}, step)
    return [
        f"what messages between replicas and islands keep between steps starts anew: {folder} was saved with "
        f"{saved or 'none of it'}, and this run has {live.own_layout or 'none of it'}"
    ]


def _misfit(kind: StateKind, copies: int, live: LiveState, folder: Path) -> str:
    """Why this run cannot resume this kind, of which the checkpoint has ``copies``; empty if it can."""
    islands = live.mesh.islands.processes
    if copies == 0:
        return f"{folder} does not hold it"
    if kind.name == OWN_WEIGHT and copies != islands:
        return f"each island has its own, {folder} was saved by {copies} and this run has {islands}"
    return ""


def _load(
    live: LiveState, kind: StateKind, file: Tensors, tensors: Sequence[FullTensors], tick: Tick
) -> None:
    fragments, mesh = live.fragments(), live.mesh
    for each in tensors:
        tick()
        fragment, shape = fragments[each.parameter, kind.name], each.local_shape(mesh.processes)
        if fragment.size == 0:
            continue
        if fragment.size == prod(shape):
            each.fill(fragment.numbers.view(shape), mesh.local_shards, file.slices)
            continue
        whole = torch.empty(shape)
        each.fill(whole, mesh.local_shards, file.slices)
        fragment.numbers.copy_(whole.view(-1).narrow(0, fragment.start, fragment.size))
