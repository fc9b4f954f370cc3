"""The order of a mixture of sources: exact shares in every global batch, and epochs for each source."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, lcm
from zlib import crc32

from caat.data.order import Epochs, mix

# Counts that Quotas keeps: a step reads parts of at most two batches, and looks one batch ahead.
RECENT = 4


def shares_of(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Return ``weights`` divided by their sum, exactly: 0.7 counts as 7/10. In the order of the names."""
    exact = {name: Fraction(str(weights[name])) for name in sorted(weights)}
    total = sum(exact.values())
    return {name: weight / total for name, weight in exact.items()}


def endless_order(
    lengths: Mapping[str, int], shares: Mapping[str, Fraction], batch: int, seed: int
) -> SingleOrder | MixedOrder:
    """Return the order of the sequences of one source or several: ``order[place]`` is (source, sequence).

    ``lengths`` are the sequences in an epoch of each source, ``batch`` those of a global batch.
    """
    if len(lengths) == 1:
        return SingleOrder(lengths, seed)
    return MixedOrder(lengths, shares, batch, seed)


class SingleOrder:
    """The epochs of one source."""

    def __init__(self, lengths: Mapping[str, int], seed: int) -> None:
        ((self._name, length),) = lengths.items()
        self._epochs = Epochs(length, seed)

    def __getitem__(self, place: int) -> tuple[str, int]:
        return self._name, self._epochs[place]

    def taken(self, place: int) -> dict[str, int]:
        """Return the sequences of each source before ``place``."""
        return {self._name: place}


class Quotas:
    """The number of sequences of each source in each global batch, for ``shares`` that add up to 1.

    Every batch holds share * batch sequences of a source, rounded up or down, and so do the first b batches
    together (share * batch * b, rounded up or down), for every b. Which sources are rounded up is Pfair
    scheduling: each source is a task with the fractional part of share * batch as its rate, and the
    sequences that rounding down leaves over are the processors. The rule is PD2 (Anderson and Srinivasan,
    "Mixed Pfair/ERfair scheduling of asynchronous periodic tasks", 2001), which meets all deadlines.
    """

    def __init__(self, shares: Mapping[str, Fraction], batch: int) -> None:
        exact = {name: share * batch for name, share in shares.items()}
        self._whole = {name: int(number) for name, number in exact.items()}
        self._rates = {name: exact[name] - whole for name, whole in self._whole.items()}
        self._left = batch - sum(self._whole.values())
        # After a period, every source has had its exact share.
        self._period = lcm(*(rate.denominator for rate in self._rates.values()))
        # How often each source was rounded up before the batches of a period that were asked for last. A
        # step that reads parts of two batches goes back, and counting from the start again is slow.
        self._up = {0: dict.fromkeys(shares, 0)}

    def before(self, batch: int) -> dict[str, int]:
        """Return the sequences of each source in the batches before number ``batch``."""
        periods, at = divmod(batch, self._period)
        if at not in self._up:
            known = max(each for each in self._up if each < at)
            up = dict(self._up[known])
            for number in range(known, at):
                self._round_up(number, up)
            self._up = {0: self._up[0], **dict(list(self._up.items())[-RECENT:]), at: up}
        return {
            name: batch * whole + periods * int(self._period * self._rates[name]) + self._up[at][name]
            for name, whole in self._whole.items()
        }

    def _round_up(self, batch: int, up: dict[str, int]) -> None:
        """Count in ``up`` the sources that ``batch`` rounds up: those with the nearest deadlines."""
        released = [
            name
            for name, rate in self._rates.items()
            if rate and up[name] * rate.denominator // rate.numerator <= batch
        ]
        nearest = sorted(released, key=lambda name: _urgency(self._rates[name], up[name] + 1))
        assert len(nearest) >= self._left, (batch, nearest)
        for name in nearest[: self._left]:
            up[name] += 1


def _urgency(rate: Fraction, number: int) -> tuple[int, int, int]:
    """Return PD2's priority of the ``number``-th subtask of a task of ``rate`` below 1; the lowest is first.

    Its deadline; then whether its window overlaps the next one's; then its group deadline, later ones first.
    """
    deadline = ceil(number / rate)
    overlaps = deadline > number / rate
    group = ceil(ceil(deadline * (1 - rate)) / (1 - rate)) if rate >= Fraction(1, 2) else 0
    return deadline, -overlaps, -group


class MixedOrder:
    """Several sources, each in its share of every global batch.

    Global batch b is the places from b * batch on. :class:`Quotas` says how many sequences of each source it
    holds, and they are spread evenly over it, so that every replica's slice is mixed too. Each source goes
    through its own epochs, in an order that depends only on the seed and on its name.
    """

    def __init__(
        self, lengths: Mapping[str, int], shares: Mapping[str, Fraction], batch: int, seed: int
    ) -> None:
        self._epochs = {
            name: Epochs(length, mix(seed, crc32(name.encode()))) for name, length in lengths.items()
        }
        self._quotas, self._batch = Quotas(shares, batch), batch
        self._number, self._places = 0, self._spread(0)

    def __getitem__(self, place: int) -> tuple[str, int]:
        name, i = self._places_of(place // self._batch)[place % self._batch]
        return name, self._epochs[name][i]

    def taken(self, place: int) -> dict[str, int]:
        """Return the sequences of each source before ``place``."""
        number, rest = divmod(place, self._batch)
        counts = self._quotas.before(number)
        for name, _ in self._places_of(number)[:rest]:
            counts[name] += 1
        return counts

    def _places_of(self, number: int) -> list[tuple[str, int]]:
        if number != self._number:
            self._number, self._places = number, self._spread(number)
        return self._places

    def _spread(self, number: int) -> list[tuple[str, int]]:
        """Return the source of each place of a batch, and which sequence of its endless order it is."""
        before, after = self._quotas.before(number), self._quotas.before(number + 1)
        spread = []
        for name, first in before.items():
            count = after[name] - first
            spread += [((i + 0.5) / count, name, first + i) for i in range(count)]
        return [(name, i) for _, name, i in sorted(spread)]
