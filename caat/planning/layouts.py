"""Layouts of a run, and whether they fit into the memory of its processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from caat.optim.kinds import kinds_of, saved_numbers
from caat.planning.activations import WIDE, Pass
from caat.planning.data_traffic import Kept, kept_numbers
from caat.planning.memory import Memory, memory
from caat.planning.parameters import local_parameters
from caat.topology.settings import Schedules
from conf.partition import shared_channels
from conf.schema import Config

CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True)
class Layout:
    """The layout of a run; ``processes`` (P) share a replica, and ``replicas`` (D) an island."""

    processes: int
    replicas: int
    stage: int
    checkpointing: str
    micro_batch: int
    islands: int = 1

    @property
    def all_replicas(self) -> int:
        """Number of replicas of all islands."""
        return self.replicas * self.islands


def layout_of(config: Config, world: int) -> Layout:
    """Return the layout of the settings."""
    c = config.train
    processes = config.parallel.tensor_processes(world)
    stage = config.zero.trained(c.precision)
    islands = config.parallel.islands
    replicas = world // (processes * islands)
    return Layout(processes, replicas, stage, c.activation_checkpointing, c.micro_batch, islands)


def pass_of(config: Config, layout: Layout, ratio: float, cuda: bool = True) -> Pass:
    """Return one forward pass in that layout."""
    c, shards = config.train, config.parallel.tensor
    channels = shared_channels(config.model.hidden, ratio, shards)
    return Pass(
        config.model,
        shards,
        layout.processes,
        channels,
        layout.micro_batch,
        c.sequence,
        2 if c.precision == "bf16" else 4,
        layout.checkpointing,
        cuda,
        c.documents == "masked",
    )


def needs(config: Config, layout: Layout, cuda: bool = True) -> Memory:
    """Return the memory of one process; for a schedule of ``sync.ratio``, at the ratio that needs most."""
    accumulation = config.train.global_batch // (layout.micro_batch * layout.all_replicas)
    passes = (pass_of(config, layout, ratio, cuda) for ratio in config.sync.schedule.values())
    where = (layout.replicas, layout.stage, config.train.precision)
    kept = kept_of(config, layout)
    kept_bytes = WIDE * kept.residuals + (2 if config.train.precision == "bf16" else WIDE) * kept.weights
    kept_bytes += WIDE * sum(outer_numbers(config, layout))
    needed = (memory(p, *where, accumulation, optim=config.optim, kept=kept_bytes) for p in passes)
    return max(needed, key=lambda each: each.total)


def kept_of(config: Config, layout: Layout) -> Kept:
    """Return what the messages between replicas of one process keep between steps."""
    held = local_parameters(config.model, config.parallel.tensor, layout.processes)
    where = (layout.replicas, layout.stage, config.train.precision)
    return kept_numbers(held, *where, sync=config.data_sync)


class Outer(NamedTuple):
    """Numbers that outer steps keep in a process."""

    # The anchor and its velocity, the same on all islands; also the turns of SLAMB.
    common: int = 0
    # What codecs lost of a change.
    residuals: int = 0
    # This island's change and the sum of all, during an exchange.
    changes: int = 0
    # The origin of the island's weights and the velocity of its share, with eager outer steps.
    eager: int = 0


def outer_numbers(config: Config, layout: Layout) -> Outer:
    """Return what outer steps keep in a process; nothing without them."""
    settings = config.islands
    if settings.resolved(layout.islands) == "none":
        return Outer()
    held = sum(
        each.numbers for each in local_parameters(config.model, config.parallel.tensor, layout.processes)
    )
    part = held if layout.stage == 0 else -(-held // layout.replicas)
    _, momentum = settings.outer_optimizer(layout.islands)
    feedback = settings.codec != "none" and settings.feedback
    # A turn takes two bytes.
    turns = -(-part // 2) if settings.method == "slamb" else 0
    return Outer(
        common=part * (1 + (momentum > 0)) + turns,
        residuals=part * feedback,
        changes=2 * part,
        eager=part * (1 + (momentum > 0)) * settings.eager,
    )


def saved_per_weight(config: Config) -> int:
    """Return the numbers per weight in a checkpoint: weights, optimizer state, and what islands add."""
    kinds, settings = kinds_of(config.optim), config.islands
    islands = config.parallel.islands
    if settings.resolved(islands) == "none":
        return saved_numbers(kinds)
    _, momentum = settings.outer_optimizer(islands)
    # Each island's own weights and moments, in addition to the anchor and its velocity.
    return 1 + (momentum > 0) + islands * saved_numbers(kinds)


def check_schedules(config: Config, layout: Layout) -> None:
    """Raise ``ValueError`` unless the schedules of the settings are correct, and for this layout."""
    between_replicas = Schedules.of(config.data_sync.route, layout.replicas)
    if between_replicas:
        between_replicas.check_owners(layout.stage)
    Schedules.of(config.islands.route, layout.islands)


def all_layouts(config: Config, world: int) -> Iterator[Layout]:
    """Yield every number of processes and ZeRO stage, with micro-batches of 1 and no recomputation.

    Layouts that training refuses with these schedules and codecs are left out.
    """
    islands = config.parallel.islands
    for processes in range(1, config.parallel.tensor + 1):
        if config.parallel.tensor % processes == 0 and world % (processes * islands) == 0:
            for stage in (1, 2, 3) if config.train.precision == "bf16" else (0, 1, 2, 3):
                layout = Layout(processes, world // (processes * islands), stage, "none", 1, islands)
                if _is_possible(config, layout):
                    yield layout


def _is_possible(config: Config, layout: Layout) -> bool:
    try:
        config.data_sync.check_stage(layout.stage)
        check_schedules(config, layout)
    except ValueError:
        return False
    return True


def largest_that_fits(config: Config, layout: Layout, limit: int) -> Layout | None:
    """Return ``layout`` with the largest micro-batch, a power of two, that fits into ``limit`` bytes."""
    fitting = [each for each in _micro_batches(config, layout) if needs(config, each).total <= limit]
    return fitting[-1] if fitting else None


def divides(config: Config, layout: Layout) -> bool:
    """Return whether the global batch divides equally among the replicas, or among halves of theirs."""
    return config.train.global_batch % (_least_micro_batch(config) * layout.all_replicas) == 0


def _least_micro_batch(config: Config) -> int:
    return 2 if config.sync.halves else 1


def _micro_batches(config: Config, layout: Layout) -> Iterator[Layout]:
    """Yield ``layout`` with each power of two that divides a replica's share of the global batch."""
    size = _least_micro_batch(config)
    while config.train.global_batch % (size * layout.all_replicas) == 0:
        yield replace(layout, micro_batch=size)
        size *= 2
