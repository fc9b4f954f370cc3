"""What is known of each token besides its number: whether a document begins with it, whether it counts."""

from __future__ import annotations

import numpy as np

# A target with this value does not count: it has no loss and no gradient, as in torch.
IGNORED = -100


def begins(tokens: np.ndarray, bos: int, eos: int) -> np.ndarray:
    """Return for each token of ``tokens`` [..., length] whether a document begins with it.

    A document is ``bos``, its pieces and ``eos``. If both are the same token, only the second of two begins a
    document; the first one of a sequence then needs no mark, because every sequence begins one.
    """
    found = tokens == bos
    if bos == eos:
        found[..., 1:] &= tokens[..., :-1] == eos
    return found


def borders(begin: np.ndarray) -> np.ndarray:
    """Return where documents begin in the flattened sequences, and their end, int32 [documents + 1].

    ``begin`` [sequences, length] marks the first token of each document. Every sequence begins one: with a
    whole document, or with the rest of one, which is then computed without what came before.
    """
    begin = begin.copy()
    begin[:, 0] = True
    return np.append(np.flatnonzero(begin), begin.size).astype(np.int32)
