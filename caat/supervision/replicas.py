"""Check at intervals that tensors replicated over ranks are identical, before a fault spreads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import Arriving, Halves
from caat.parallel.sharding import sharded_parameters
from caat.supervision.control import Control

# Sharded parameters are large and equal only between replicas: each check covers a few of them, in turn.
SHARDED_EACH_TIME = 2
# equal_after(step): whether all islands must have equal weights after this step. The same on all ranks.
EqualAfter = Callable[[int], bool]


def after_every_step(step: int) -> bool:
    """Return True: a single island is equal to itself."""
    return True


class DriftError(RuntimeError):
    """Copies of a tensor differ between ranks, due to faulty memory, a corrupt message or a faulty kernel."""


class ReplicaGuard:
    """Compares checksums between ranks every ``every`` steps (0: never); :meth:`after` raises `DriftError`.

    It compares all replicated parameters between all ranks, some of the sharded parameters between
    replicas, and the shared channels of the output of ``block`` between the processes of a replica. Islands
    are compared with each other only after steps for which ``equal_after`` holds: a check that is due waits
    for the next such step.
    """

    def __init__(
        self,
        model: nn.Module,
        block: nn.Module,
        mesh: Mesh,
        control: Control,
        every: int,
        *,
        equal_after: EqualAfter = after_every_step,
    ) -> None:
        self._mesh, self._control, self._every = mesh, control, every
        self._equal_after = equal_after
        # True if a comparison between islands is due and waits for a step after which they are equal.
        self._waiting = False
        sharded = {id(parameter) for _, parameter, _ in sharded_parameters(model)}
        named = list(model.named_parameters())
        self._replicated = [(name, p) for name, p in named if id(p) not in sharded]
        self._sharded = [(name, p) for name, p in named if id(p) in sharded]
        self._turn = 0
        self._leaving: list[tuple[Tensor, Tensor]] | None = None
        self._looking = False
        block.register_forward_hook(self._look)

    def before(self, step: int) -> None:
        """Called before a step: have its first forward pass record the shared channels if a check is due."""
        self._looking = self._due(step)
        self._leaving = None

    def after(self, step: int) -> None:
        """Called after a step: compare if it is due. Collective."""
        self._waiting = self._waiting or self._due(step)
        between_islands = self._waiting and self._equal_after(step)
        if not (self._due(step) or between_islands):
            return
        self._waiting = self._waiting and not between_islands
        some = [self._sharded[(self._turn + i) % len(self._sharded)] for i in range(SHARDED_EACH_TIME)]
        self._turn += SHARDED_EACH_TIME
        everywhere = {name: checksum(p) for name, p in self._replicated if _is_here(p)}
        by_shard = {name: checksum(p) for name, p in some if _is_here(p)}
        # Add the two only now: when the block returned, the all-reduce was still in flight.
        leaving, self._leaving = self._leaving, None
        shared = None if leaving is None else sum(checksum(residual + late) for residual, late in leaving)
        every_rank = self._control.gather((everywhere, by_shard, shared))
        problems = self._differences(every_rank, between_islands)
        if problems:
            raise DriftError(
                f"stopped after step {step}: copies of the same tensor differ. {'; '.join(problems)}. A "
                "process, its memory or its network is faulty: exclude it and resume from the last checkpoint"
            )

    def _differences(
        self,
        ranks: Sequence[tuple[dict[str, int], dict[str, int], int | None]],
        between_islands: bool,
    ) -> list[str]:
        world, processes = len(ranks), self._mesh.processes
        replicas = [range(first, first + processes) for first in range(0, world, processes)]
        island = processes * self._mesh.data_size
        # Groups of ranks whose replicas are equal now.
        equal = [range(first, first + island) for first in range(0, world, island)]
        if between_islands:
            equal = [range(world)]
        problems = []
        for name in ranks[0][0]:
            for group in equal:
                problems += _compare(name, {rank: ranks[rank][0][name] for rank in group})
        for name, every, first in product(ranks[0][1], equal, range(processes)):
            problems += _compare(name, {rank: ranks[rank][1][name] for rank in every[first::processes]})
        for group in replicas:
            problems += _compare(
                "the shared channels of the residual stream", {rank: ranks[rank][2] for rank in group}
            )
        return problems

    def _due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def _look(self, module: nn.Module, inputs: Any, output: Arriving | Halves) -> None:
        if self._looking:
            streams = output if isinstance(output, Halves) else (output,)
            self._leaving = [(x.residual.detach(), x.sum.detach()) for x in streams]
            self._looking = False


def checksum(tensor: Tensor) -> int:
    """Sum the bits of ``tensor`` as integers, so that the order of summation does not matter."""
    bits = tensor.detach().contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)
    return int(bits.sum(dtype=torch.int64))


def _compare(name: str, sums: dict[int, int | None]) -> list[str]:
    values: Iterable[int | None] = sums.values()
    common = max(set(values), key=list(values).count)
    odd = [str(rank) for rank, value in sums.items() if value != common]
    if not odd:
        return []
    where = f"copy of {name} on rank" if len(odd) == 1 else f"copies of {name} on ranks"
    return [f"the {where} {', '.join(odd)} {'differs' if len(odd) == 1 else 'differ'} from the others"]


def _is_here(parameter: Tensor) -> bool:
    """Return whether this rank holds the parameter.

    At ZeRO stage 3 large parameters are partitioned over the replicas: there is no second copy to compare.
    """
    return parameter.numel() > 0
