"""Outer steps of islands: exchange the changes of their weights, and move all islands to a common anchor.

    a    the anchor, the same on all islands: it is the model that is validated and saved
    w_m  the float32 master weights of island m
    D    mean over m of a - w_m, exchanged every H steps; `delay` steps later the outer optimizer moves a
    w_m <- (1 - alpha) a + alpha w_m

Each rank exchanges the numbers that it holds under ZeRO with the ranks in its place on the other islands. The
exchange runs in a thread, in groups of its own, while the islands train on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod

import torch
from torch import Tensor

from caat.compression.codec import Shapes
from caat.optim.kinds import WEIGHT, StateKind
from caat.optim.outer import outer_step
from caat.parallel.background import Background, Wait, nothing
from caat.parallel.mesh import Mesh
from caat.parallel.reduction import Reduction
from caat.training.data_sync_state import memories_by_name, restore_memory
from conf.data_sync import DataSyncConfig
from conf.islands import IslandsConfig

# The kinds of state that checkpoints hold in addition to the anchor.
OWN_WEIGHT, VELOCITY = "island_weight", "velocity"


@dataclass
class Message:
    """Numbers that are exchanged together: parameters of one fragment of the model.

    ``weights`` are live flat views of the master weights, by parameter; ``anchor`` and ``velocity`` hold the
    same numbers one after the other. During an exchange ``own`` is this island's change, and ``change``
    becomes the sum of all.
    """

    fragment: int
    weights: Mapping[str, Tensor]
    # Whether all tensor-parallel processes hold these numbers.
    replicated: bool
    # The shapes of the parameters if they are held whole; (): they are ranges.
    shapes: Shapes
    anchor: Tensor
    velocity: Tensor | None
    # None: there is one island.
    reduction: Reduction | None
    change: Tensor | None = None
    own: Tensor | None = None
    # Set while an exchange is in flight, with the step after which it started.
    wait: Wait | None = None
    started: int = 0

    def own_weights(self) -> Tensor:
        """Return a copy of the master weights, in the order of the anchor."""
        weights = [weight.detach() for weight in self.weights.values()]
        return torch.cat(weights) if weights else torch.empty_like(self.anchor)

    def split(self, flat: Tensor) -> Sequence[Tensor]:
        """Return the part of ``flat`` of each parameter."""
        return flat.split([weight.numel() for weight in self.weights.values()])


@dataclass
class OuterStep:
    """What islands did after a step.

    ``fragments`` are those whose exchange was applied. ``norm`` is the L2 norm of the anchor's movement.
    ``distance`` is the root mean square over the islands of the norm of w_m minus the mean of all, when the
    exchange started. Both are None if nothing was applied.
    """

    fragments: set[int] = field(default_factory=set)
    wait_seconds: float = 0.0
    norm: float | None = None
    distance: float | None = None


class Islands:
    """The outer steps on this rank.

    ``weights`` are live views of the master weights that this rank holds, by parameter, and ``shapes`` the
    shapes of the whole parameters of this process. ``sharded``: the
    parameters that are cut over tensor-parallel processes; the others must stay the same on all of these, so
    they are exchanged without a codec. ``refresh()`` takes changed master weights into the model, and is
    collective over the island. ``alone``: ZeRO does not partition, so every replica holds all numbers.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        mesh: Mesh,
        settings: IslandsConfig,
        *,
        sharded: set[str],
        fragment_of: Callable[[str], int],
        refresh: Callable[[], None],
        alone: bool,
        seed: int,
    ) -> None:
        self.mesh, self.settings, self._refresh, self._alone = mesh, settings, refresh, alone
        self._lr, self._momentum = settings.outer_optimizer(mesh.islands.processes)
        self._background, self._seed, self._shapes = Background(), seed, shapes
        # A rank that holds none of a message's numbers takes part in its collectives.
        self._device = next((w.device for w in weights.values() if w.numel()), torch.device("cpu"))
        # Whether all islands have the anchor's weights.
        self.together = True
        codec = DataSyncConfig(settings.codec, settings.feedback)
        self.messages: list[Message] = []
        for fragment in range(settings.fragments):
            here = {name: weight for name, weight in weights.items() if fragment_of(name) == fragment}
            self._add(fragment, {n: w for n, w in here.items() if n in sharded}, codec, replicated=False)
            rest = {n: w for n, w in here.items() if n not in sharded}
            self._add(fragment, rest, DataSyncConfig(), replicated=True)

    def _add(
        self, fragment: int, weights: Mapping[str, Tensor], codec: DataSyncConfig, *, replicated: bool
    ) -> None:
        # Under ZeRO a rank may hold none of these, but all ranks have the same messages.
        own = {name: weight.view(-1) for name, weight in weights.items() if weight.numel()}
        anchor = (
            torch.cat([weight.detach() for weight in own.values()])
            if own
            else torch.empty(0, device=self._device)
        )
        velocity = torch.zeros_like(anchor) if self._momentum else None
        axis, reduction = self.mesh.islands, None
        if axis.processes > 1 and own:
            reduction = axis.reduction(codec, self._seed + len(self.messages))
        whole = all(weight.numel() == prod(self._shapes[name]) for name, weight in own.items())
        shapes = [self._shapes[name] for name in own] if whole else ()
        self.messages.append(Message(fragment, own, replicated, shapes, anchor, velocity, reduction))

    def step(self, step: int, *, last: bool = False) -> OuterStep:
        """Apply the exchanges that are due after ``step``, and start new ones. Collective.

        After the ``last`` step everything is exchanged at once: what an island learned since the last
        exchange would be lost.
        """
        outer, delay = OuterStep(), self.settings.delay
        squares = torch.zeros(2, dtype=torch.float64)
        self.together = False
        for message in self.messages:
            if message.wait is not None and (last or step == message.started + delay):
                squares += self._apply(message, outer)
        for message in self.messages:
            if last or self.settings.due(step, message.fragment):
                self._start(message, step, outer)
        for message in self.messages:
            if message.wait is not None and (last or delay == 0):
                squares += self._apply(message, outer)
        if outer.fragments:
            self._refresh()
            whole = len(outer.fragments) == self.settings.fragments
            self.together = whole and self.settings.alpha == 0 and (last or delay == 0)
            outer.norm, outer.distance = self._over_all_ranks(squares)
        return outer

    @torch.no_grad()
    def _start(self, message: Message, step: int, outer: OuterStep) -> None:
        message.started, message.wait = step, nothing
        message.change = message.anchor - message.own_weights()
        message.own = message.change.clone()
        reduction = message.reduction
        if reduction is None:
            return
        reduction.start_step(step)
        reduction.begin()
        if self.settings.delay:
            exchange = partial(reduction.everywhere, shapes=message.shapes)
            message.wait = self._background.run(exchange, message.change)
        else:
            waiting = time.perf_counter()
            reduction.everywhere(message.change, message.shapes)
            outer.wait_seconds += time.perf_counter() - waiting

    @torch.no_grad()
    def _apply(self, message: Message, outer: OuterStep) -> Tensor:
        """Move anchor and weights; return the squares of movement and distance that this rank adds."""
        assert message.wait is not None and message.change is not None and message.own is not None
        waiting = time.perf_counter()
        message.wait()
        outer.wait_seconds += time.perf_counter() - waiting
        self.mesh.islands.count_changes()
        outer.fragments.add(message.fragment)
        mean, before = message.change.div_(self.mesh.islands.processes), message.anchor.clone()
        if self.mesh.islands.processes == 1 and (self._lr, self._momentum) == (1.0, 0.0):
            # a - (a - w) may differ from w in the last bit.
            message.anchor.copy_(message.own_weights())
        else:
            outer_step(message.anchor, message.velocity, mean, lr=self._lr, momentum=self._momentum)
        self._take(message)
        squares = [t.double().square().sum().cpu() for t in (message.anchor - before, message.own - mean)]
        message.wait = message.change = message.own = None
        return torch.stack(squares) * self._counts(message)

    def _take(self, message: Message) -> None:
        """Move the master weights towards the anchor."""
        for weight, anchor in zip(message.weights.values(), message.split(message.anchor), strict=True):
            if self.settings.alpha == 0:
                weight.data.copy_(anchor)
            else:
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

    @contextmanager
    def at_anchor(self) -> Iterator[None]:
        """Give the model the anchor's weights for a while. Collective."""
        if self.together:
            yield
            return
        kept = [[weight.detach().clone() for weight in message.weights.values()] for message in self.messages]
        self.restart()
        try:
            yield
        finally:
            for message, own in zip(self.messages, kept, strict=True):
                for weight, values in zip(message.weights.values(), own, strict=True):
                    weight.data.copy_(values)
            self._refresh()

    @torch.no_grad()
    def restart(self) -> None:
        """Move this island to the anchor. Collective."""
        for message in self.messages:
            for weight, anchor in zip(message.weights.values(), message.split(message.anchor), strict=True):
                weight.data.copy_(anchor)
        self._refresh()

    def refresh(self) -> None:
        """Take master weights that were changed from outside into the model. Collective."""
        self._refresh()
        self.together = False

    def shared_numbers(self, name: str) -> dict[str, Tensor]:
        """Return live views of a parameter's anchor, and of its velocity if there is one, by kind."""
        for message in self.messages:
            if name in message.weights:
                at = list(message.weights).index(name)
                found = {WEIGHT.name: message.split(message.anchor)[at]}
                if message.velocity is not None:
                    found[VELOCITY] = message.split(message.velocity)[at]
                return found
        kinds = [WEIGHT.name, *([VELOCITY] if self._momentum else [])]
        return {kind: torch.empty(0) for kind in kinds}

    @property
    def kinds(self) -> tuple[StateKind, ...]:
        """The kinds of state that outer steps add."""
        velocity = (StateKind(VELOCITY),) if self._momentum else ()
        return (*velocity, StateKind(OWN_WEIGHT, island=True))

    @property
    def layout(self) -> str:
        """Describe the settings that :meth:`tensors` depends on; empty if there are no such tensors."""
        s, islands = self.settings, self.mesh.islands.processes
        if s.codec == "none" and not s.delay:
            return ""
        exchanges = f"islands={islands} every={s.every} fragments={s.fragments} delay={s.delay}"
        return f"{exchanges} islands.codec={s.codec} islands.feedback={s.feedback}"

    def tensors(self) -> dict[str, Tensor]:
        """Return what outer steps keep in this process alone: residuals, and sums that are not applied yet.

        Waits for exchanges in flight.
        """
        found: dict[str, Tensor] = {}
        for number, message in enumerate(self.messages):
            if message.reduction is not None:
                named = memories_by_name(message.reduction)
                found |= {f"islands.{number}.{name}": values for name, values in named.items()}
            if message.wait is not None:
                message.wait()
                assert message.change is not None and message.own is not None
                found[f"islands.{number}.change"] = message.change
                found[f"islands.{number}.own"] = message.own
        return found

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore what :meth:`tensors` returned on this process after ``step``."""
        for name, values in tensors.items():
            _, number, kind = name.split(".", 2)
            message = self.messages[int(number)]
            if kind in ("change", "own"):
                setattr(message, kind, values.to(message.anchor))
                message.wait = nothing
                started = range(step, step - self.settings.delay, -1)
                message.started = next(s for s in started if self.settings.due(s, message.fragment))
            else:
                assert message.reduction is not None
                restore_memory(message.reduction, kind, values)
