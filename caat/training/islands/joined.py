"""Outer steps of an island that is a run of its own, with the islands that happen to be there.

Every H steps the island asks the lighthouse for a round. Those that come at the same time average their
changes; an island that missed a round takes the anchor and the outer momentum of the others first, drops what
it learned, and adds nothing to the mean. A round that fails leaves weights and anchor as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caat.parallel.meeting import Meeting
from caat.parallel.membership import Round, Standing
from caat.supervision.replicas import checksum
from caat.training.islands.kept_rounds import KeptRounds
from caat.training.islands.outer_steps import Islands, OuterStep
from caat.training.islands.rounds import Exchange, Outcome

# How often the main thread looks whether a round is over.
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Party:
    """How an island meets others: its ``name``, and the ``settings`` that must be the same on all.

    ``wait_for`` islands are waited for at the start. ``tick`` is called while others are waited for.
    """

    meeting: Meeting
    name: str
    settings: Mapping[str, str]
    wait_for: int = 1
    tick: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Flight:
    """A round in flight: started after step ``started``, with this island's ``changes`` by message."""

    started: int
    changes: list[Tensor]
    future: Future[Outcome]


class JoinedIslands(Islands):
    """The outer steps of one island of a :class:`Party`. The settings are as for :class:`Islands`."""

    def __init__(self, *arguments: Any, party: Party, seed: int, **others: Any) -> None:
        super().__init__(*arguments, seed=seed, **others)
        self._party, self._meeting = party, party.meeting
        # At ZeRO 0 all replicas hold the same numbers.
        holder = self.mesh.tensor_rank if self._alone else self._meeting.place
        self.exchange = Exchange(
            self.messages, self._meeting, self.settings, seed=seed, name=party.name, holder=holder
        )
        self._thread = ThreadPoolExecutor(1, "caat-round")
        self.flight: Flight | None = None
        # Rounds that made the anchor, and rounds in a row and in all that failed.
        self.rounds, self._failures, self._failed = 0, 0, 0
        # Steps until the next round.
        self._left = self.settings.every
        self._running = False
        self._names: tuple[str, ...] = (party.name,)
        self.kept = KeptRounds(self, momentum=self._momentum > 0)

    def join(self) -> list[str]:
        """Come to the other islands, and take their anchor if it is newer; return notes. Collective.

        Raises :class:`~caat.parallel.membership.RefusedError` if the settings differ from theirs.
        """
        outer = OuterStep()
        self.awaited(self._thread.submit(self._meeting.start, self._party.wait_for))
        self._begin(0, weight=0)
        self._end(outer, joining=True)
        return outer.notes

    def step(self, step: int, *, last: bool = False) -> OuterStep:
        """Apply the round that is due after ``step``, and start a new one. Collective.

        After the ``last`` step there is a round at once. If it fails, the anchor takes this island's changes.
        """
        outer, delay = OuterStep(), self.settings.delay
        self.together = at_anchor = False
        self._meeting.moved()
        self._left -= 1
        if self.flight is not None and (last or step >= self.flight.started + delay):
            self._end(outer)
            # The weights have just moved to the anchor: there is nothing to exchange.
            at_anchor = bool(outer.fragments) and self.settings.alpha == 0
        if self.flight is None and (last or self._left <= 0) and not (last and at_anchor):
            self._begin(step, weight=1)
        if self.flight is not None and (last or delay == 0):
            self._end(outer, last=last)
        if last:
            # Validation and the last save may take long, and the others need not wait for this island.
            self.leave()
        outer.figures |= {
            "islands_round": self.rounds,
            "islands_present": len(self._names),
            "islands_rounds_failed": self._failed,
            **{f"islands_{name}": n for name, n in self.mesh.islands.ledger.totals("anchor").items()},
        }
        return outer

    @property
    def in_flight(self) -> bool:
        """Whether a round has been asked for and is not applied yet."""
        return self.flight is not None

    def wait(self) -> None:
        """Wait for a round in flight; its result is applied when it is due."""
        if self.flight is not None:
            self.awaited(self.flight.future)

    def leave(self) -> None:
        """Leave, so that the others need not wait for this island any more, and end a round in flight."""
        self._meeting.close()
        if self.flight is not None:
            wait([self.flight.future])
            self.flight = None

    @torch.no_grad()
    def _begin(self, step: int, *, weight: int) -> None:
        self._left = self.settings.every
        changes = [message.anchor - message.own_weights() for message in self.messages]
        kept = [t for message in self.messages for t in (message.anchor, message.velocity) if t is not None]
        standing = Standing(
            name=self._party.name,
            rounds=self.rounds,
            # Sums of 64 bits may wrap around.
            mark=int(torch.tensor([checksum(each) for each in kept]).sum()),
            weight=weight,
            running=self._running,
            settings=self._party.settings,
        )
        self.exchange.begin(step)
        future = self._thread.submit(self.exchange.run, [change.cpu() for change in changes], standing)
        self.flight = Flight(step, changes, future)

    def _end(self, outer: OuterStep, *, joining: bool = False, last: bool = False) -> None:
        assert self.flight is not None
        flight = self.flight
        waiting = time.perf_counter()
        outcome = self.awaited(flight.future)
        outer.wait_seconds += time.perf_counter() - waiting
        self.flight = None
        self._count()
        if outcome.why:
            self.exchange.take_back()
            self._note_failure(outcome.why, outer, joining=joining, last=last)
            if not last:
                return
            alone = Round((self._party.name,), 0, 0, (), (0,), self.rounds, "")
            outcome = Outcome(alone, sums=[change.cpu() for change in flight.changes])
        assert outcome.round is not None
        self._failures, self._running = 0, self._running or not last
        self._note_members(outcome.round, outer)
        self._apply_round(outcome, flight, outer, joining=joining)

    @torch.no_grad()
    def _apply_round(self, outcome: Outcome, flight: Flight, outer: OuterStep, *, joining: bool) -> None:
        found = outcome.round
        assert found is not None
        if outcome.anchors is not None:
            self.exchange.forget()
            for message, (anchor, velocity) in zip(self.messages, outcome.anchors, strict=True):
                message.anchor.copy_(anchor)
                if message.velocity is not None and velocity is not None:
                    message.velocity.copy_(velocity)
        self.rounds = found.rounds + bool(found.contributors)
        if found.contributors:
            squares = torch.zeros(2, dtype=torch.float64)
            for message, total, own in zip(self.messages, outcome.sums, flight.changes, strict=True):
                alone = len(found.names) == 1 and self.settings.delay == 0
                mean = total.to(own) / len(found.contributors)
                squares += self._move(message, mean, own, alone=alone)
                if not (joining or found.late):
                    self._take(message)
            outer.fragments.add(0)
            outer.norm, outer.distance = self._over_all_ranks(squares)
        if found.late or (joining and found.contributors):
            for message in self.messages:
                message.set_weights(message.anchor)
        elif not found.contributors:
            return
        self._refresh()
        self.together = self.settings.alpha == 0 or found.late

    def awaited(self, future: Future) -> Any:
        """Return the result of ``future``. Other islands may be waited for as long as the timeout allows."""
        while not wait([future], LOOK_SECONDS).done:
            # Not while the ranks of this island wait for each other: one of them may hang.
            if self._meeting.outside:
                self._party.tick()
        return future.result()

    def _count(self) -> None:
        ours, sent = self.mesh.islands.ledger, self._meeting.ledger
        ours.calls.update(sent.calls)
        ours.sent.update(sent.sent)
        sent.reset()

    def _note_failure(self, why: str, outer: OuterStep, *, joining: bool, last: bool) -> None:
        self._failures, self._failed = self._failures + 1, self._failed + 1
        # Twice as long each time: a lighthouse or a link may be away for hours.
        self._left = min(2 ** (self._failures - 1), self.settings.every)
        steps = f"{self._left} step{'' if self._left == 1 else 's'}"
        then = "its changes are in its own anchor" if last else f"training continues, next try after {steps}"
        what = "joining" if joining else f"round {self.rounds + 1}"
        outer.notes.append(f"islands: {what} failed ({why}): {then}")

    def _note_members(self, found: Round, outer: OuterStep) -> None:
        before, now = set(self._names), set(found.names)
        if found.late:
            outer.notes.append(
                f"islands: took the anchor of round {found.rounds} from {found.names[found.lead]}; what this "
                f"island learned since round {self.rounds} is dropped"
            )
        if before != now:
            came = [f"{name} came" for name in sorted(now - before)]
            left = [f"{name} is gone" for name in sorted(before - now)]
            here = f"{len(now)} islands are there" if len(now) > 1 else "this island is alone"
            outer.notes.append(f"islands: {', '.join(came + left)}: {here}")
        self._names = found.names
