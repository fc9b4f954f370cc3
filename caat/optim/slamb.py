"""SLAMB (Xu et al., ICML 2023): LAMB on islands that average a part of the momentum in each step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import sqrt
from random import Random

import torch
from torch import Tensor, nn

from caat.optim.lamb import LAMB, cut, trust_ratio
from caat.parallel.mesh import Mesh
from caat.parallel.sharding import sharded_parameters
from conf.optim import OptimConfig


class SLAMB(LAMB):
    """LAMB whose momentum is averaged over the islands in turns, a share ``rho`` of the numbers in each step.

    Every number has its turn once in each cycle of 1 / rho steps, the same on all islands. With n steps since
    then, s = beta3^n, and per matrix, with M islands:

        r = s |w_new| / |u_new| + (1 - s) |w_old| / |u_old|
        w <- w - lr (s + (1 - s) / sqrt(M)) r u

    The norms are over the numbers whose turn it is, and over the others. Momenta of norm weights and biases
    are averaged whole in each step. This is the authors' code (hangxu0304/SLAMB) except that it also averages
    matrices of fewer than 9,000 numbers whole, and bounds r to [0.01, 1000]. With rho = 1 it is LAMB with the
    mean momentum. The weights are averaged by the islands' outer steps.
    """

    def __init__(
        self, model: nn.Module, optim: OptimConfig, mesh: Mesh, *, rho: float, beta3: float, seed: int
    ) -> None:
        super().__init__(model, optim, mesh)
        self._cycle, self._beta3 = int(1 / rho), beta3
        # By parameter, the turn of each number on this process, before ZeRO cuts them.
        self._turns_of = {
            name: draw_turns(
                parameter.shape,
                sharding.dim,
                mesh.local_shards,
                f"{seed} {name.removesuffix('.weight')}",
                self._cycle,
            )
            for name, parameter, sharding in sharded_parameters(model)
            if parameter.dim() > 1
        }
        self._shared = False

    @cached_property
    def _turns(self) -> dict[Tensor, Tensor | None]:
        """The turn of every number of each weight in ``param_groups``; None: averaged whole.

        Padding has no turn.
        """
        found: dict[Tensor, Tensor | None] = {}
        for name, place in self.places.items():
            if place.weight is None:
                continue
            if name not in self._turns_of:
                found[place.weight] = None
                continue
            turns = found.get(place.weight)
            if turns is None:
                turns = torch.full((place.weight.numel(),), -1, dtype=torch.int16, device=place.weight.device)
                found[place.weight] = turns
            part = self._turns_of[name][place.start : place.start + place.size]
            turns[place.offset : place.offset + place.size] = part
        self._turns_of.clear()
        return found

    @property
    def _now(self) -> int:
        """Number of this training step, from 1. Steps that an island skipped count, on all islands alike."""
        return self.ended + 1

    def share_momentum(self) -> None:
        self._average(took=True)

    def end_step(self) -> None:
        if not self._shared:
            self._average(took=False)
        self._shared = False
        super().end_step()

    def _average(self, *, took: bool) -> None:
        """Average the momenta whose turn it is over the islands that took this step. Collective.

        Norm weights and biases have a message of their own: as long on all tensor-parallel processes, it is
        added up in the same order there.
        """
        self._shared = True
        islands = self._mesh.islands
        for replicated in (False, True):
            momenta, due = [], []
            for weight, turns in self._turns.items():
                if (turns is None) == replicated:
                    momentum = self.state_of(weight)["exp_avg"].view(-1)
                    momenta.append(momentum)
                    due.append(slice(None) if turns is None else turns == self._now % self._cycle)
            parts = [momentum[each] for momentum, each in zip(momenta, due, strict=True)]
            count = torch.ones(1, device=parts[0].device if parts else None)
            message = torch.cat([*parts, count])
            if not took:
                message.zero_()
            islands.all_reduce_large(message, "step", "momentum")
            if not took:
                continue
            means = message[:-1].div_(message[-1]).split([len(part) for part in parts])
            for momentum, each, mean in zip(momenta, due, means, strict=True):
                momentum[each] = mean

    def update_matrices(self, held: Sequence[tuple[Tensor, dict]]) -> None:
        turns = {weight: each for weight, each in self._turns.items() if each is not None}
        new = {weight: each == self._now % self._cycle for weight, each in turns.items()}
        norms = self.norms([weight for weight, _ in held], new)
        ratio, old = trust_ratio(norms[:, 0], norms[:, 1]), trust_ratio(norms[:, 2], norms[:, 3])
        # A matrix of fewer numbers than turns has none in some.
        none_due = (norms[:, :2] == 0).all(1)
        steps = self._steps(torch.where(none_due, old, ratio), old)
        for weight, group in held:
            for piece in self.pieces.get(weight, ()):
                step = steps[piece.matrix][cut(turns[weight], piece).long()]
                cut(weight, piece).addcmul_(cut(weight.grad, piece), step, value=-group["lr"])

    def _steps(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the step sizes per matrix and turn [matrices, cycle], for lr 1 and these trust ratios."""
        turns = torch.arange(self._cycle, device=new.device)
        # In the first cycle, numbers whose turn has not come yet were last the same at the start.
        since = ((self._now - turns) % self._cycle).clamp(max=self._now)
        s = self._beta3**since
        smaller = s + (1 - s) / sqrt(self._mesh.islands.processes)
        return (s * new[:, None] + (1 - s) * old[:, None]) * smaller


def draw_turns(shape: Sequence[int], dim: int, shards: Sequence[int], seed: str, cycle: int) -> Tensor:
    """Return the turn of each number of a weight that holds ``shards`` side by side along ``dim``, flat.

    It is the same for a shard on any process.
    """
    turns = torch.empty(*shape, dtype=torch.int16)
    for shard, part in zip(shards, turns.chunk(len(shards), dim), strict=True):
        n = part.numel()
        generator = torch.Generator().manual_seed(Random(f"{seed} {shard}").getrandbits(63))
        turn = torch.empty(n, dtype=torch.int16)
        turn[torch.randperm(n, generator=generator)] = (torch.arange(n) * cycle // n).short()
        part.copy_(turn.view(part.shape))
    return turns.flatten()
