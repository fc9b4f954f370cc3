"""The validation split: a document's text alone decides whether it is held out."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32


def is_held_out(document: bytes, below: int) -> bool:
    """Return whether a document (UTF-8) is held out, given the bound from :func:`held_out_below`."""
    return crc32(document) < below


def held_out_below(texts: Iterable[str], fraction: float) -> int:
    """Return the bound that holds out ``fraction`` of the documents, adjusted if a split would be empty.

    In that case the document nearest to the bound changes sides. Reading stops as soon as both splits have
    a document, so only a tiny corpus is read completely. Raises ``ValueError`` if two splits are impossible.
    """
    below = int(fraction * (1 << 32))
    lowest, highest = 1 << 32, -1
    for text in texts:
        value = crc32(text.encode())
        lowest, highest = min(lowest, value), max(highest, value)
        if lowest < below <= highest:
            return below
    if lowest >= highest:
        raise ValueError(
            f"the text has {'only one document' if highest >= 0 else 'no document'}, but training and "
            "validation need one each: give more text, or split it (blank lines in a text file, else rows)"
        )
    return lowest + 1 if lowest >= below else highest
