"""The wait for the messages between replicas in one optimizer step, by formula or by simulation."""

from __future__ import annotations

from collections.abc import Sequence

from caat.planning.data_traffic import GatheredWeights, owned_slices, scheduled_ways, sent_bytes
from caat.planning.parameters import Parameter
from caat.planning.prediction import Link
from caat.topology.settings import Schedules, Way
from conf.data_sync import DataSyncConfig


def gather_seconds(size: int, replicas: int, link: Link) -> float:
    """Return the seconds in which each replica sends ``size`` bytes, around a ring once."""
    if not size:
        return 0.0
    return link.cost.seconds + (replicas - 1) * link.delay + max(size / link.rate, size / link.cost.rate)


def way_seconds(way: Way, link: Link) -> float:
    """Return the seconds of a message along its schedule, simulated with the rate and delay of ``link``."""
    if not way.numbers:
        return 0.0
    on_cores = way.most_sent_bytes / link.cost.rate
    return link.cost.seconds + max(way.seconds(link.rate, link.delay, link.sharers), on_cores)


def data_wait(
    held: Sequence[Parameter],
    replicas: int,
    stage: int,
    precision: str,
    accumulation: int,
    *,
    link: Link,
    forward: float,
    backward: float,
    layers: int,
    sync: DataSyncConfig | None = None,
) -> float:
    """Return the seconds of a step in which a process only waits for data-parallel messages.

    ``forward`` and ``backward`` are the seconds of arithmetic of a micro-batch. Below stage 3 DeepSpeed waits
    for every message, because its ``overlap_comm`` is off. At stage 3 it is on: weights are prefetched and
    gradients sent during the arithmetic, and only the excess is waited for. At least the share of one layer
    is exposed, because nothing hides the first weights and the last gradients. Encoding takes no time here.
    """
    if replicas == 1:
        return 0.0
    reduced, stepped = _times(held, replicas, stage, precision, link=link, sync=sync or DataSyncConfig())
    if stage < 3:
        return (accumulation if stage == 2 else 1) * reduced + stepped

    def seconds(full: int) -> float:
        return gather_seconds(full * (replicas - 1) // replicas, replicas, link)

    gathered = GatheredWeights.of(held, replicas, precision)
    fetched, again = seconds(gathered.forward), seconds(gathered.backward)
    each = max(fetched / layers, fetched - forward) + max(reduced / layers, reduced + again - backward)
    return stepped + accumulation * each


def _times(
    held: Sequence[Parameter],
    replicas: int,
    stage: int,
    precision: str,
    *,
    link: Link,
    sync: DataSyncConfig,
) -> tuple[float, float]:
    """Return the seconds of one message of gradients, and of all gathers after the optimizer's step."""
    schedules = Schedules.of(sync.route, replicas)
    if schedules:
        codec = sync.weights_codec if stage in (1, 2) else "none"
        gradients, weights = scheduled_ways(held, replicas, stage, precision, schedules, weights_codec=codec)
        return way_seconds(gradients, link), sum(way_seconds(way, link) for way in weights)
    sent = sent_bytes(held, replicas, stage, precision, 1, sync=sync)
    _, whole = owned_slices(held, replicas, stage, precision)
    messages, rounds = _in_turn(sync.codec, whole)
    again = (rounds - 1) * (replicas - 1) * link.delay + (messages - 1) * link.cost.seconds
    passes = GatheredWeights.of(held, replicas, precision).in_passes(1) if stage == 3 else 0
    weights_bytes = sent.weights - passes * (replicas - 1) // replicas
    return (
        gather_seconds(sent.gradients, replicas, link) + again,
        gather_seconds(weights_bytes, replicas, link),
    )


def _in_turn(codec: str, whole: bool) -> tuple[int, int]:
    """Return how many messages of gradients wait for each other, and how often they go around the ring.

    ``whole``: all ranks need all sums.
    """
    from caat.compression.codec import Linear
    from caat.compression.spec import make_codec

    made = make_codec(codec)
    if isinstance(made, Linear) and made.way == "linear":
        # PowerSGD's second factor is computed from the sum of the first. All-reduces go around twice.
        messages = len(made.summed_sizes(1))
        return messages, 2 * messages
    return 1, 2 if whole and made.way != "gathered" else 1
