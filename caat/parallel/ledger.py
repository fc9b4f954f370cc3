"""Counts of the collectives of a process."""

from __future__ import annotations

from collections import Counter


class Ledger:
    """Calls and bytes since the last :meth:`reset`, both by ``(direction, purpose)``.

    ``sent`` counts the bytes of messages, in the type in which they are sent.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[tuple[str, str]] = Counter()

    def count(self, size: int, direction: str, purpose: str) -> None:
        """Add one call with a message of ``size`` bytes."""
        self.calls[direction, purpose] += 1
        self.sent[direction, purpose] += size

    def totals(self, *names: str) -> dict[str, int]:
        """``calls_NAME`` and ``bytes_NAME`` for each direction or purpose in ``names``."""
        return {
            f"{what}_{name}": sum(n for key, n in counter.items() if name in key)
            for what, counter in (("calls", self.calls), ("bytes", self.sent))
            for name in names
        }

    def reset(self) -> None:
        self.calls.clear()
        self.sent.clear()
