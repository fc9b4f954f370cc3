"""Send the state of parameters from the ranks that hold it to the ranks that write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.parallel.sharding import FullTensors
from caat.supervision.control import Control
from caat.training.checkpoint.files import File

# held(parameter, kind) -> this rank's fragment, flat float32 on the CPU.
Held = Callable[[str, str], Tensor]


# Start and size of a rank's fragment, by parameter and kind.
Ranges = dict[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True)
class Turn:
    """One parameter's tensors of one kind, to be sent to the rank that writes their file."""

    file: File
    tensors: FullTensors


@dataclass(frozen=True)
class Piece:
    """Numbers ``[start, start + size)`` of a tensor rank's flattened parameter, and the rank with them."""

    source: int
    tensor_rank: int
    start: int
    size: int


class Exchange:
    """The plan of messages. In a round, every writer has one turn, so it holds at most one parameter.

    ``ranges`` are those of this rank. Creating it is collective.
    """

    def __init__(self, files: Sequence[File], ranges: Ranges, mesh: Mesh, control: Control) -> None:
        self.mesh, self.control = mesh, control
        self._ranges = control.gather(ranges)
        queues: list[list[Turn]] = [[] for _ in range(control.world)]
        for file in files:
            queues[file.writer] += [Turn(file, tensors) for tensors in file.tensors]
        self.rounds = [[queue[i] for queue in queues if i < len(queue)] for i in range(max(map(len, queues)))]
        self._mine = queues[control.rank]
        self._buffers: list[Tensor] = []

    def sent_by_me(self) -> list[tuple[str, str]]:
        """Return the parameters and kinds of which any writer (or this rank itself) needs our fragment."""
        return [
            (turn.tensors.parameter, turn.file.content.kind)
            for turns in self.rounds
            for turn in turns
            if any(piece.source == self.control.rank for piece in self._pieces(turn))
        ]

    def allocate(self) -> None:
        """Allocate memory for this rank's largest parameter: in a round, a failure would block the others."""
        sizes = [prod(turn.tensors.local_shape(self.mesh.processes)) for turn in self._mine]
        several = any(turn.tensors.sharding is not None for turn in self._mine)
        count = self.mesh.processes if several else 1
        self._buffers = [torch.empty(max(sizes, default=0)) for _ in range(count)]

    def release(self) -> None:
        self._buffers = []

    def run(self, turns: Sequence[Turn], held: Held) -> tuple[Turn, list[Tensor]] | None:
        """Run one round; return this rank's turn in it and the parameter of every tensor rank. Collective."""
        me, mine, requests, buffers = self.control.rank, None, [], []
        for turn in turns:
            parameter, kind = turn.tensors.parameter, turn.file.content.kind
            if turn.file.writer == me:
                processes = 1 if turn.tensors.sharding is None else self.mesh.processes
                shape = turn.tensors.local_shape(self.mesh.processes)
                buffers = [buffer[: prod(shape)] for buffer in self._buffers[:processes]]
                mine = turn, [buffer.view(shape) for buffer in buffers]
            for piece in self._pieces(turn):
                if turn.file.writer == me:
                    into = buffers[piece.tensor_rank].narrow(0, piece.start, piece.size)
                    if piece.source == me:
                        into.copy_(held(parameter, kind))
                    else:
                        requests.append(dist.irecv(into, piece.source, group=self.control.group))
                elif piece.source == me:
                    message = held(parameter, kind)
                    requests.append(dist.isend(message, turn.file.writer, group=self.control.group))
        for request in requests:
            assert request is not None
            request.wait()
        return mine

    def _pieces(self, turn: Turn) -> list[Piece]:
        """Return pieces that cover each number once, from the nearest replica or the owner of the copy."""
        found: dict[tuple[int, int], Piece] = {}
        content, processes = turn.file.content, self.mesh.processes
        on_island = processes * self.mesh.data_size
        ranks = [rank for rank in range(self.control.world) if content.island in (None, rank // on_island)]
        for rank in sorted(ranks, key=lambda rank: self._distance(rank, turn)):
            start, size = self._ranges[rank][turn.tensors.parameter, content.kind]
            tensor_rank = 0 if turn.tensors.sharding is None else rank % processes
            if size:
                found.setdefault((tensor_rank, start), Piece(rank, tensor_rank, start, size))
        return [found[place] for place in sorted(found)]

    def _distance(self, rank: int, turn: Turn) -> int:
        writer = turn.file.writer
        return 0 if rank == writer else 1 + (rank // self.mesh.processes != writer // self.mesh.processes)
