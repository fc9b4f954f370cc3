"""Batches of token sequences, independent of the layout and reproduced exactly after a restart.

Sequence i of a split is its S + 1 tokens [i * S, i * S + S]: the inputs and, shifted by one, the targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch

from caat.data.marks import COUNTS, IGNORED, borders
from caat.data.mixing import endless_order
from caat.data.shards import TokenShards, sequence_count

# Inputs and targets, int64 [batch, sequence] each; targets that do not count are -100. With masked documents
# also where those begin in the flattened inputs, and their end: int32 [documents + 1].
Batch = tuple[torch.Tensor, ...]
# A batch, and how many of its leading rows count.
HeldOut = tuple[*tuple[torch.Tensor, ...], int]
# A sequence: the split that holds it, and its number there.
Entry = tuple[TokenShards, int]


class Loader:
    """Shuffled training batches. The only state is ``position``, the sequences consumed by all ranks.

    Global batch b consists of entries [b * global_batch, (b + 1) * global_batch) of an endless order, with
    a new permutation every epoch. The order does not depend on ``data_size``; data-parallel rank d takes
    the d-th slice of each batch. ``position`` may be set to any number of sequences. With several sources in
    ``shards``, by name, the order is :class:`caat.data.mixing.MixedOrder`. ``masked``: the batches say where
    documents begin. ``counted`` is the number of targets that count in the last global batch, over all
    ranks; None if all do in every batch.

    Raises ``ValueError`` if the split is shorter than one sequence, or the global batch is not a multiple
    of ``micro_batch`` times ``data_size``.
    """

    def __init__(
        self,
        shards: TokenShards | Mapping[str, TokenShards],
        sequence: int,
        micro_batch: int,
        global_batch: int,
        seed: int,
        *,
        shares: Mapping[str, Fraction] | None = None,
        data_rank: int = 0,
        data_size: int = 1,
        position: int = 0,
        masked: bool = False,
    ) -> None:
        assert 0 <= data_rank < data_size, (data_rank, data_size)
        if global_batch % (micro_batch * data_size):
            raise ValueError(
                f"train.global_batch={global_batch} is not a multiple of train.micro_batch={micro_batch} "
                f"times {data_size} data-parallel replicas: change one of the two"
            )
        self.shards = shards if isinstance(shards, Mapping) else {"": shards}
        self.sequence = sequence
        self.micro_batch = micro_batch
        self.global_batch = global_batch
        self.position = position
        self.counted: int | None = None
        self._masked = masked
        self._share = global_batch // data_size
        self._offset = data_rank * self._share
        self._lengths = {name: sequence_count(each, sequence) for name, each in self.shards.items()}
        self._order = endless_order(self._lengths, shares or {}, global_batch, seed)

    def step(self) -> list[Batch]:
        """Return this rank's micro-batches [micro_batch, S] of the next global batch, moving ``position``."""
        places = range(self.position, self.position + self.global_batch)
        if any(shards.marked for shards in self.shards.values()):
            # Every rank reads the marks of all: they are small, and a message would wait for all ranks.
            self.counted = sum(_counted(*self._entry(at), self.sequence) for at in places)
        entries = [self._entry(at) for at in places[self._offset : self._offset + self._share]]
        self.position += self.global_batch
        return [
            _batch(entries[i : i + self.micro_batch], self.sequence, masked=self._masked)
            for i in range(0, self._share, self.micro_batch)
        ]

    @property
    def epochs(self) -> dict[str, float]:
        """Return how often each source of a mixture was read up to ``position``; nothing for one text."""
        if len(self.shards) == 1:
            return {}
        taken = self._order.taken(self.position)
        return {name: taken[name] / length for name, length in self._lengths.items()}

    def _entry(self, place: int) -> Entry:
        source, number = self._order[place]
        return self.shards[source], number


def validation_batches(
    shards: TokenShards,
    sequence: int,
    batch: int,
    count: int,
    *,
    data_rank: int = 0,
    data_size: int = 1,
    masked: bool = False,
) -> Iterator[HeldOut]:
    """Yield this rank's share of the first ``count`` sequences (fewer if the split is shorter), in order.

    Yields a batch like those of :class:`Loader` and the number of its leading rows that count: the last
    batches are padded with copies, so that every rank gets the same number of full batches and takes part
    in the same collectives. The exact mean loss is the sum over the rows that count, divided by S times
    their number over all ranks.

    Raises ``ValueError`` at the call, before iteration, if the split is shorter than one sequence.
    """
    assert 0 <= data_rank < data_size, (data_rank, data_size)
    count = min(count, sequence_count(shards, sequence))

    def batches() -> Iterator[HeldOut]:
        for start in range(
            data_rank * batch, -(-count // (batch * data_size)) * batch * data_size, batch * data_size
        ):
            numbers = range(start, start + batch)
            rows = sum(number < count for number in numbers)
            kept = [(shards, min(number, count - 1)) for number in numbers]
            yield *_batch(kept, sequence, masked=masked), rows

    return batches()


def _batch(entries: Sequence[Entry], sequence: int, *, masked: bool) -> Batch:
    rows = np.stack([shards.read(number * sequence, sequence + 1) for shards, number in entries])
    parts = [rows[:, :-1], rows[:, 1:]]
    if masked or any(shards.marked for shards, _ in entries):
        marks = np.stack([shards.marks(number * sequence, sequence + 1) for shards, number in entries])
        parts[1] = np.where(marks[:, 1:] & COUNTS, parts[1], IGNORED)
        parts += [borders(marks[:, :-1])] * masked
    return tuple(torch.from_numpy(part).contiguous() for part in parts)


def _counted(shards: TokenShards, number: int, sequence: int) -> int:
    """Return how many targets of a sequence count."""
    if not shards.marked:
        return sequence
    return int((shards.marks(number * sequence + 1, sequence) & COUNTS).sum())
