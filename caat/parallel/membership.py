"""Who takes part in a round of islands that come and go, and how far each is: all decide alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


class RefusedError(Exception):
    """This run cannot be an island of the others: its settings or its name do not allow it."""


class LostError(Exception):
    """A round did not come about. Training continues without it."""


@dataclass(frozen=True)
class Standing:
    """What an island tells the others when it asks for a round.

    ``rounds`` that made its anchor, and ``mark``, a checksum of anchor and velocity. ``weight`` of its change
    in the mean: 0 if it has just come. ``running``: it has been in a round since it was started.
    ``settings`` that must be the same on all islands, by name.
    """

    name: str
    rounds: int
    mark: int
    weight: int
    running: bool
    settings: Mapping[str, str]

    def to_data(self) -> dict[str, Any]:
        """Return the standing as JSON values."""
        return {**asdict(self), "settings": dict(self.settings)}

    @staticmethod
    def from_data(data: object) -> Standing | None:
        """Return the standing of :meth:`to_data`; None for what another program or version sent."""
        names = {each.name for each in fields(Standing)}
        return Standing(**data) if isinstance(data, dict) and data.keys() == names else None


@dataclass(frozen=True)
class Asked:
    """An island that takes part in a quorum, with the address of its store."""

    id: str
    store: str
    standing: Standing


@dataclass(frozen=True)
class Round:
    """The islands of a round, by place.

    ``place`` of this one, and ``lead``, of one with the newest anchor. ``behind``: places with another
    anchor, which take the lead's. ``contributors``: places whose changes are averaged. ``rounds`` that made
    the lead's anchor. ``prefix``: address of the lead's store, and a prefix for the keys of this round.
    """

    names: tuple[str, ...]
    place: int
    lead: int
    behind: tuple[int, ...]
    contributors: tuple[int, ...]
    rounds: int
    prefix: str

    @property
    def late(self) -> bool:
        """Whether this island takes the lead's anchor."""
        return self.place in self.behind


def choose(asked: Sequence[Asked], mine: str, created: str) -> Round:
    """Return the round of the islands that ``asked``, by id, as the island with the id ``mine`` sees it.

    Islands with other settings than those that run already are left out; with this one among them, raise
    :class:`RefusedError`. ``created`` names the quorum. All islands decide from the same ``asked``.
    """
    first = max(asked, key=lambda each: (each.standing.running, each.standing.rounds))
    own = next(each for each in asked if each.id == mine)
    _check(own.standing, first.standing, asked)
    fit = [each for each in asked if each.standing.settings == first.standing.settings]
    versions = [(each.standing.rounds, each.standing.mark) for each in fit]
    # The newest anchor; of several, that of most islands.
    newest = max(versions, key=lambda version: (version[0], Counter(versions)[version]))
    lead = versions.index(newest)
    behind = tuple(place for place, version in enumerate(versions) if version != newest)
    return Round(
        names=tuple(each.standing.name for each in fit),
        place=fit.index(own),
        lead=lead,
        behind=behind,
        contributors=tuple(n for n, each in enumerate(fit) if each.standing.weight and n not in behind),
        rounds=newest[0],
        prefix=f"{fit[lead].store}/{created}",
    )


def _check(mine: Standing, first: Standing, asked: Sequence[Asked]) -> None:
    """Raise :class:`RefusedError` unless ``mine`` has the settings of ``first`` and a name of its own."""
    others = {name: value for name, value in first.settings.items() if mine.settings.get(name) != value}
    if others:
        texts = [
            f"{name} is {mine.settings.get(name)} here and {theirs} on island {first.name}"
            for name, theirs in sorted(others.items())
        ]
        remedy = " ".join(f"{name}={theirs}" for name, theirs in sorted(others.items()) if "." in name)
        raise RefusedError(
            f"the islands that are there have other settings: {'; '.join(texts)}. Give "
            f"{remedy or 'the same ones'}, or join another lighthouse"
        )
    same = [each.standing for each in asked if each.standing.name == mine.name]
    if len(same) > 1 and not mine.running and any(each.running for each in same):
        raise RefusedError(name_taken(mine.name))


def name_taken(name: str) -> str:
    """Return the message for an island whose name another one has."""
    return (
        f"an island called {name} is there already: end that run, or give this one another islands.name=... "
        "(its data is in another order then)"
    )
