"""The messages between islands, and the wait for them, by formula.

The bytes are those that a process of an island's first replica sends, and equal the counts of changes and
momentum of :class:`~caat.parallel.island_axis.IslandAxis` to the byte, if the model is one fragment and the
codec has a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from caat.compression.codec import Shapes
from caat.parallel.ring import ring_bytes
from caat.planning.activations import WIDE
from caat.planning.data_traffic import encoded_bytes, padded
from caat.planning.data_wait import way_seconds
from caat.planning.layouts import Layout
from caat.planning.parameters import Parameter, local_parameters, optimizer_groups
from caat.planning.prediction import Link
from caat.planning.zero import ALIGNMENT
from caat.topology.settings import Schedules
from conf.codec import BLOCK
from conf.schema import Config

# All-reduces over all islands in every step: of the loss, and of the agreement whether to stop or to save.
SMALL = 2


def exchange_bytes(config: Config, layout: Layout) -> int:
    """Return the bytes of the exchange of all weights, once; 0 with one island."""
    if layout.islands == 1:
        return 0
    sharded, norms = _held(config, layout, _replicated)
    schedules = Schedules.of(config.islands.route, layout.islands)
    if schedules:
        return sum(_along(schedules, numbers) for numbers, _ in (sharded, norms))
    return _everywhere(config.islands.codec, *sharded, layout.islands) + _everywhere(
        "none", *norms, layout.islands
    )


def momentum_bytes(config: Config, layout: Layout) -> int:
    """Return the bytes of SLAMB's momentum in a step, on average; each message has a count of islands."""
    shared = _momentum_numbers(config, layout)
    schedules = Schedules.of(config.islands.route, layout.islands)
    if schedules:
        return sum(_along(schedules, numbers) for numbers in shared)
    return sum(ring_bytes(WIDE * numbers, layout.islands) for numbers in shared)


def _momentum_numbers(config: Config, layout: Layout) -> list[int]:
    """Return the numbers of SLAMB's messages of momentum in a step, on average, with the count of islands."""
    if layout.islands == 1 or config.islands.method != "slamb":
        return []
    (matrices, _), (vectors, _) = _held(config, layout, lambda p: p.norm or p.bias)
    return [-(-matrices // int(1 / config.islands.rho)) + 1, vectors + 1]


def _along(schedules: Schedules, numbers: int) -> int:
    return schedules.way("all-reduce", numbers, WIDE).sent_bytes(0)


def bytes_per_step(config: Config, layout: Layout) -> float:
    """Return the bytes of changes and momentum of a step, on average."""
    return exchange_bytes(config, layout) / config.islands.every + momentum_bytes(config, layout)


def island_wait(config: Config, layout: Layout, link: Link, step_seconds: float, small: int = SMALL) -> float:
    """Return the seconds per step, on average, in which a process only waits for other islands.

    ``link`` is one process's part of the link between islands, ``step_seconds`` a step without this wait.
    An exchange with a lag is hidden by so many steps, and then takes a core's time from them. The
    ``small`` messages of every step cost only their delay and the time of a message.
    """
    islands, settings = layout.islands, config.islands
    if islands == 1:
        return 0.0
    around = 2 * (islands - 1) * link.delay + link.cost.seconds
    exchange, momentum = _exchange_seconds(config, layout, link, around)
    exposed = max(0.0, exchange / settings.fragments - settings.lag * step_seconds)
    fragment = exchange_bytes(config, layout) / settings.fragments
    taken = fragment / link.cost.rate + link.cost.seconds if settings.lag else 0.0
    each_round = (exposed + taken) * settings.fragments
    return each_round / settings.every + momentum + around * small


def _exchange_seconds(config: Config, layout: Layout, link: Link, around: float) -> tuple[float, float]:
    """Return the seconds of the exchange of all fragments, one after the other, and of SLAMB's momentum.

    ``around`` are the seconds of a message without bytes: sums at owners, then a gather.
    """
    schedules = Schedules.of(config.islands.route, layout.islands)
    if schedules:
        numbers = [n for n, _ in _held(config, layout, _replicated)], _momentum_numbers(config, layout)
        changes, momentum = (
            sum(way_seconds(schedules.way("all-reduce", n, WIDE), link) for n in each) for each in numbers
        )
        return changes, momentum
    slowest, sent = min(link.rate, link.cost.rate), momentum_bytes(config, layout)
    exchange = exchange_bytes(config, layout) / slowest + around * config.islands.fragments
    return exchange, sent / slowest + around * (sent > 0)


def _replicated(parameter: Parameter) -> bool:
    """Return whether all tensor-parallel processes hold the parameter."""
    return parameter.norm


def _held(config: Config, layout: Layout, apart: Callable[[Parameter], bool]) -> list[tuple[int, Shapes]]:
    """Return the numbers that a process of the first replica holds, and of those that are ``apart``."""
    held = local_parameters(config.model, config.parallel.tensor, layout.processes)
    return [
        _part([p for p in held if apart(p) is each], layout.replicas, layout.stage) for each in (False, True)
    ]


def _part(parameters: Sequence[Parameter], replicas: int, stage: int) -> tuple[int, Shapes]:
    """Return the first replica's numbers, with the shapes of what it holds whole."""
    numbers = sum(p.numbers for p in parameters)
    if stage == 0 or replicas == 1:
        return numbers, [p.shape for p in parameters]
    if stage == 3:
        return sum(-(-p.numbers // replicas) for p in parameters), ()
    groups = [sum(p.numbers for p in group) for group in optimizer_groups(parameters)]
    return sum(min(n, padded(n, ALIGNMENT * replicas) // replicas) for n in groups), ()


def _everywhere(codec: str, numbers: int, shapes: Shapes, islands: int) -> int:
    """Return the bytes that the first island sends, so that all have the sum of a message."""
    each = padded(-(-numbers // islands), BLOCK)
    slices = [min(each, max(0, numbers - each * owner)) for owner in range(islands)]
    if codec == "none":
        return WIDE * (sum(slices[1:]) + (islands - 1) * slices[0])
    return encoded_bytes(codec, slices, True, shapes)
