"""Outer steps of islands: exchange the changes of their weights, and move all islands to a common anchor.

    a    the anchor, the same on all islands: it is the model that is validated and saved
    w_m  the float32 master weights of island m
    D    mean over m of a - w_m, exchanged every H steps; `delay` steps later the outer optimizer moves a
    w_m <- (1 - alpha) a + alpha w_m

Each rank exchanges the numbers that it holds under ZeRO with the ranks in its place on the other islands. The
exchange runs in groups of its own while the islands train on: in a thread on CPUs, on a CUDA stream on GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from caat.optim.outer import outer_step
from caat.parallel.background import Background, nothing
from caat.parallel.mesh import Mesh
from caat.training.islands.kept import Kept
from caat.training.islands.message import Message, messages_of
from conf.data_sync import DataSyncConfig
from conf.islands import IslandsConfig


@dataclass
class OuterStep:
    """What islands did after a step.

    ``fragments`` are those whose exchange was applied. ``norm`` is the L2 norm of the anchor's movement.
    ``distance`` is the root mean square over the islands of the norm of w_m minus the mean of all, when the
    exchange started. Both are None if nothing was applied. ``notes`` are for the user, and ``figures`` for
    the record of the step.
    """

    fragments: set[int] = field(default_factory=set)
    wait_seconds: float = 0.0
    norm: float | None = None
    distance: float | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


class Islands:
    """The outer steps on this rank.

    ``weights`` are live views of the master weights that this rank holds, by parameter, and ``shapes`` the
    shapes of the whole parameters of this process. ``sharded``: the parameters that are cut over
    tensor-parallel processes; the others must stay the same on all of these, so they are exchanged without a
    codec. ``padding``: numbers of ``weights`` that must stay zero. ``refresh()`` takes changed master weights
    into the model, and is collective over the island. ``alone``: ZeRO does not partition, so every replica
    holds all numbers.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        mesh: Mesh,
        settings: IslandsConfig,
        *,
        sharded: set[str],
        padding: Mapping[str, Sequence[slice]],
        fragment_of: Callable[[str], int],
        refresh: Callable[[], None],
        alone: bool,
        seed: int,
    ) -> None:
        self.mesh, self.settings, self._refresh, self._alone = mesh, settings, refresh, alone
        self._lr, self._momentum = settings.outer_optimizer(mesh.islands.processes)
        self._background = Background()
        # What was done since the last step, and the squares of its norms on this rank.
        self._outer, self._squares = OuterStep(), torch.zeros(2, dtype=torch.float64)
        # A rank that holds none of a message's numbers takes part in its collectives.
        self._device = next((w.device for w in weights.values() if w.numel()), torch.device("cpu"))
        # Whether all islands have the anchor's weights.
        self.together = True
        self.messages = messages_of(
            weights,
            shapes,
            sharded=sharded,
            padding=padding,
            fragments=settings.fragments,
            fragment_of=fragment_of,
            momentum=self._momentum > 0,
        )
        lossy = DataSyncConfig(settings.codec, settings.feedback)
        for number, message in enumerate(self.messages):
            if mesh.islands.processes > 1 and message.weights:
                codec = DataSyncConfig() if message.replicated else lossy
                message.reduction = mesh.islands.reduction(codec, seed + number)
        self.kept = Kept(self.messages, settings, mesh.islands.processes, momentum=self._momentum > 0)

    def step(self, step: int, *, last: bool = False) -> OuterStep:
        """Apply the exchanges that are due after ``step``, and start new ones. Collective.

        After the ``last`` step everything is exchanged at once: what an island learned since the last
        exchange would be lost. Weights that have just moved to the anchor have learned nothing since then,
        and an exchange of zeros would move the anchor by momentum alone.
        """
        self.together = False
        moved, at_anchor = False, set()
        for message in self.messages:
            if message.wait is not None and (last or step == message.started + self.settings.lag):
                self._apply(message)
                moved = True
                if self.settings.alpha == 0 and not self.settings.eager:
                    at_anchor.add(message.fragment)
        for message in self.messages:
            if last and message.fragment in at_anchor:
                continue
            if last or self.settings.due(step, message.fragment):
                self._start(message, step)
                if self.settings.eager:
                    self._look_ahead(message)
                    moved = True
        for message in self.messages:
            if message.wait is not None and (last or self.settings.lag == 0):
                self._apply(message, last=last)
                moved = True
        outer, self._outer = self._outer, OuterStep()
        squares, self._squares = self._squares, torch.zeros_like(self._squares)
        if moved:
            self._refresh()
        if outer.fragments:
            whole = len(outer.fragments) == self.settings.fragments
            self.together = whole and self.settings.alpha == 0 and (last or self.settings.lag == 0)
            outer.norm, outer.distance = self._over_all_ranks(squares)
        return outer

    @torch.no_grad()
    def compensate(self, gradients: Mapping[str, Tensor]) -> None:
        """Correct the live ``gradients`` for the last exchange, and apply it: DC-S3GD, before an update.

        ``gradients`` are flat, by parameter, the numbers that this rank holds. Collective over the island.

        g <- g + lambda g g D_m, where D_m is the mean change of all islands minus this one's, and lambda is
        lambda0 |g| / |g g D_m| (arXiv 1911.02516). The norms are over the whole model.
        """
        arrived = [message for message in self.messages if message.wait is not None]
        corrections, squares = [], torch.zeros(2, dtype=torch.float64)
        for message in arrived:
            mean = self._arrived(message)
            assert message.own is not None
            # Changes count from the anchor to the weights here, the other way around than in the paper.
            gradient, difference = message.gather(gradients), message.own - mean
            correction = gradient.square().mul_(difference)
            corrections.append(message.split(correction))
            both = [each.double().square().sum().cpu() for each in (gradient, correction)]
            squares += torch.stack(both) * self._counts(message)
        squares = squares.to(self._device)
        for axis in (self.mesh.tensor, self.mesh.data):
            axis.all_reduce(squares, "step", "norm")
        of_gradient, of_correction = squares.sqrt().tolist()
        scale = self.settings.lambda0 * of_gradient / of_correction if of_correction > 0 else 0.0
        for message, parts in zip(arrived, corrections, strict=True):
            for name, part in zip(message.weights, parts, strict=True):
                gradients[name].add_(part, alpha=scale)
            self._apply(message)

    @torch.no_grad()
    def _start(self, message: Message, step: int) -> None:
        message.started, message.wait = step, nothing
        origin = message.anchor if message.origin is None else message.origin
        message.change = origin - message.own_weights()
        message.own = message.change.clone()
        reduction = message.reduction
        if reduction is None:
            return
        reduction.start_step(step)
        reduction.begin()
        if self.settings.lag:
            exchange = partial(reduction.everywhere, shapes=message.shapes)
            message.wait = self._background.run(exchange, message.change)
        else:
            waiting = time.perf_counter()
            reduction.everywhere(message.change, message.shapes)
            self._outer.wait_seconds += time.perf_counter() - waiting

    def _arrived(self, message: Message) -> Tensor:
        """Wait for the exchange of ``message``; return the mean change of all islands."""
        assert message.wait is not None and message.change is not None
        if message.mean is None:
            waiting = time.perf_counter()
            message.wait()
            self._outer.wait_seconds += time.perf_counter() - waiting
            self.mesh.islands.count_changes()
            message.mean = message.change.div_(self.mesh.islands.processes)
        return message.mean

    @torch.no_grad()
    def _apply(self, message: Message, *, last: bool = False) -> None:
        """Move the anchor, and the weights towards it, when the exchange has arrived."""
        mean, own = self._arrived(message), message.own
        assert own is not None
        alone = self.mesh.islands.processes == 1 and self.settings.lag == 0
        self._squares += self._move(message, mean, own, alone=alone)
        self._outer.fragments.add(message.fragment)
        if last or not self.settings.eager:
            self._take(message)
        if last:
            message.origin = None
        message.wait = message.change = message.own = message.mean = None

    def _move(self, message: Message, mean: Tensor, own: Tensor, *, alone: bool) -> Tensor:
        """Move the anchor by the ``mean`` change of all islands, of which ``own`` is this one's.

        ``alone``: there is one island, whose weights are still those of its change. Returns the squares of
        the anchor's movement and of the distance from the mean that this rank adds.
        """
        for padding in message.padding:
            # A codec may have decoded its zeros to other numbers.
            mean[padding] = 0
        before = message.anchor.clone()
        if alone and (self._lr, self._momentum) == (1.0, 0.0):
            # a - (a - w) may differ from w in the last bit.
            message.anchor.copy_(message.own_weights())
        else:
            outer_step(message.anchor, message.velocity, mean, lr=self._lr, momentum=self._momentum)
        both = [each.double().square().sum().cpu() for each in (message.anchor - before, own - mean)]
        return torch.stack(both) * self._counts(message)

    @torch.no_grad()
    def _look_ahead(self, message: Message) -> None:
        """Continue from the outer step of this island's share of the mean that is still in flight.

        Eager updates (arXiv 2502.12996) take the mean of the last round with this island's share replaced by
        its new one. The outer optimizer is linear, so this is the common anchor, a round late, minus a step
        of the island's own share with a velocity of its own.
        """
        assert message.own is not None
        share = message.own / self.mesh.islands.processes
        message.origin = message.anchor.clone()
        if self._momentum and message.own_velocity is None:
            message.own_velocity = torch.zeros_like(message.anchor)
        outer_step(message.origin, message.own_velocity, share, lr=self._lr, momentum=self._momentum)
        message.set_weights(message.origin)

    def _take(self, message: Message) -> None:
        """Move the master weights towards the anchor."""
        if self.settings.alpha == 0:
            message.set_weights(message.anchor)
            return
        for weight, anchor in zip(message.weights.values(), message.split(message.anchor), strict=True):
            weight.data.lerp_(anchor, 1 - self.settings.alpha)

    def _over_all_ranks(self, squares: Tensor) -> tuple[float, float]:
        """Return the norms over the whole model, means over the islands. Collective."""
        squares = squares.to(self._device)
        for axis in (self.mesh.tensor, self.mesh.data, self.mesh.islands):
            axis.all_reduce(squares, "step", "norm")
        norm, distance = (squares / self.mesh.islands.processes).sqrt().tolist()
        return norm, distance

    def _counts(self, message: Message) -> bool:
        """Return whether this process is the one of its island that counts the numbers of ``message``."""
        first_replica = self.mesh.data_rank == 0 or not self._alone
        return first_replica and (self.mesh.tensor_rank == 0 or not message.replicated)

    def wait(self) -> None:
        """Wait for the exchanges in flight; their results are applied when they are due."""
        for message in self.messages:
            if message.wait is not None:
                message.wait()

    @contextmanager
    def at_anchor(self) -> Iterator[None]:
        """Give the model the anchor's weights for a while. Collective."""
        own = [message.own_weights() for message in self.messages]
        self.restart()
        try:
            yield
        finally:
            for message, weights in zip(self.messages, own, strict=True):
                message.set_weights(weights)
            self._refresh()

    @torch.no_grad()
    def restart(self) -> None:
        """Move this island to the anchor. Collective."""
        for message in self.messages:
            message.set_weights(message.anchor)
        self._refresh()

    def refresh(self) -> None:
        """Take master weights that were changed from outside into the model. Collective."""
        self._refresh()
        self.together = False
