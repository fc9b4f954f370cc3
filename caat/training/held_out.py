"""The loss of held-out text: that of each source, and their mean by the shares of the mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from caat.data.loader import HeldOut
from caat.training.engine import Engine, See
from caat.training.record import finite


@dataclass(frozen=True)
class HeldOutText:
    """This rank's batches of held-out text by source, from a function, and the share of each source.

    One text has the name "" and the share 1.
    """

    batches: Mapping[str, Callable[[], Iterable[HeldOut]]]
    shares: Mapping[str, float]

    @staticmethod
    def of(batches: Callable[[], Iterable[HeldOut]]) -> HeldOutText:
        """Return the text of one source."""
        return HeldOutText({"": batches}, {"": 1.0})

    def losses(
        self, engine: Engine, name: str, beat: Callable[[], None], see: See | None = None
    ) -> dict[str, float | None]:
        """Return the loss ``name`` and, for several sources, that of each as name/source. Collective.

        The loss is the mean of those of the sources, weighted by their shares. ``beat`` is called for each
        batch, ``see`` with its losses.
        """

        def watched(batches: Iterable[HeldOut]) -> Iterator[HeldOut]:
            for batch in batches:
                beat()
                yield batch

        found = {source: engine.evaluate(watched(read()), see) for source, read in self.batches.items()}
        total = sum(self.shares[source] * loss for source, loss in found.items())
        by_source = {f"{name}/{source}": finite(loss) for source, loss in found.items() if source}
        return {name: finite(total), **by_source}
