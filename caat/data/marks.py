"""What is known of each token besides its number: whether a document begins with it, whether it counts."""

from __future__ import annotations

import numpy as np

# A target with this value does not count: it has no loss and no gradient, as in torch.
IGNORED = -100
# Bits of a mark: the token counts as a target, and a document begins with it.
COUNTS, BEGINS = 1, 2
# Marks looked at at a time: those of a text may not fit into memory.
BLOCK = 1 << 22


def marks_of_text(tokens: np.ndarray, bos: int, eos: int) -> np.ndarray:
    """Return the marks of ``tokens`` [length] of plain text, uint8: all count.

    A document is ``bos``, its pieces and ``eos``. If both are the same token, only the second of two begins a
    document; the first one of a sequence then needs no mark, because every sequence begins one.
    """
    begin = tokens == bos
    if bos == eos:
        begin[1:] &= tokens[:-1] == eos
    return (COUNTS + BEGINS * begin).astype(np.uint8)


def borders(marks: np.ndarray) -> np.ndarray:
    """Return where documents begin in the flattened sequences, and their end, int32 [documents + 1].

    ``marks`` [sequences, length] are those of the tokens. Every sequence begins a document: a whole one, or
    the rest of one, which is then computed without what came before.
    """
    begin = marks & BEGINS > 0
    begin[:, 0] = True
    return np.append(np.flatnonzero(begin), begin.size).astype(np.int32)
