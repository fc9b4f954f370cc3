"""The splits for validation and test: a document's text alone decides whether it is held out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32


@dataclass(frozen=True)
class Bounds:
    """Documents with a hash below ``validation`` are for validation, others below ``test`` for the test."""

    validation: int
    test: int

    def split(self, document: bytes) -> str:
        """Return the split of a document (UTF-8)."""
        value = crc32(document)
        if value >= self.test:
            return "train"
        return "validation" if value < self.validation else "test"


def bounds_of(texts: Iterable[str], validation: float, test: float = 0.0) -> Bounds:
    """Return the bounds that hold out these fractions of the documents, adjusted if a split would be empty.

    In that case the documents nearest to a bound change sides. Reading stops as soon as all splits have a
    document, so only a tiny corpus is read completely. Raises ``ValueError`` if it has too few documents.
    """
    bounds = Bounds(int(validation * (1 << 32)), int((validation + test) * (1 << 32)))
    missing = {"train", "validation", *(["test"] if test else [])}
    values: set[int] = set()
    splits = len(missing)
    for text in texts:
        document = text.encode()
        values.add(crc32(document))
        missing.discard(bounds.split(document))
        if not missing:
            return bounds
    if len(values) < splits:
        raise ValueError(
            f"the text has {['no document', 'only one document', 'only two documents'][len(values)]}, but "
            f"training{', validation and test' if test else ' and validation'} need one each, and equal ones "
            "count once: give more text, or split it (blank lines in a text file, else rows)"
        )
    ordered = sorted(values)
    first = _moved(ordered, bounds.validation, 1, len(ordered) - splits + 1)
    if not test:
        return Bounds(first, first)
    return Bounds(first, _moved(ordered, bounds.test, bisect_left(ordered, first) + 1, len(ordered) - 1))


def _moved(values: list[int], bound: int, least: int, most: int) -> int:
    """Return ``bound``, moved so that ``least`` to ``most`` of the sorted ``values`` are below it."""
    below = bisect_left(values, bound)
    if below < least:
        return values[least - 1] + 1
    return values[most] if below > most else bound
