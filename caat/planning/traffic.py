"""Bytes of a process's collectives in one optimizer step, by axis, and their time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caat.planning.activations import WIDE, Pass
from caat.planning.costs import recomputed_flops_per_token, sync_bytes
from caat.planning.data_wait import data_wait
from caat.planning.parameters import Parameter, norm_numbers
from caat.planning.prediction import Link, predict
from conf.data_sync import DataSyncConfig
from conf.sync import WireFormat


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute: float
    tensor_exposed: float
    data_exposed: float
    # On average over the steps of a round.
    island_exposed: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compute + self.tensor_exposed + self.data_exposed + self.island_exposed


def tensor_bytes(p: Pass, accumulation: int, wire: WireFormat) -> int:
    """Return the bytes of both directions: inside the layers, embedding, loss, norms' gradients (docs)."""
    if p.processes == 1:
        return 0
    inside = 2 * sync_bytes(p.model, p.channels, p.tokens, wire)
    embedding_backward = p.tokens * wire.token_bytes(p.model.hidden)
    return accumulation * (inside + embedding_backward + sum(_waited_for(p)))


def _waited_for(p: Pass) -> tuple[int, ...]:
    """Return the bytes of messages that nothing hides: embedding forward, two of the loss, the norms'."""
    c = p.model
    norms = norm_numbers(c) * WIDE
    return c.hidden * p.tokens * p.element_size, p.tokens * WIDE, 2 * p.tokens * WIDE, norms


def step_time(
    p: Pass,
    ratio: float,
    *,
    overlap: bool,
    accumulation: int,
    wire: WireFormat,
    flops_per_second: float,
    tensor_link: Link,
    held: Sequence[Parameter],
    replicas: int,
    stage: int,
    precision: str,
    data_link: Link,
    data_sync: DataSyncConfig,
) -> StepTime:
    """Return the time of ``accumulation`` passes on each of ``replicas``; ``held`` are one process's weights.

    Recomputation is added to the arithmetic, but does not hide tensor-parallel messages.
    """
    mode = "overlap" if overlap else "partial"
    each = predict(
        p.model,
        p.tokens,
        p.processes,
        mode,
        ratio,
        wire=wire,
        flops_per_second=flops_per_second,
        link=tensor_link,
    )
    again = recomputed_flops_per_token(p.model, p.sequence, p.checkpointing) * p.tokens / p.processes
    forward, backward = each.compute / 3, each.compute * 2 / 3 + again / flops_per_second
    exposed = each.exposed
    if p.processes > 1:
        exposed += sum(tensor_link.all_reduce_seconds(size, p.processes) for size in _waited_for(p))
    wait = data_wait(
        held,
        replicas,
        stage,
        precision,
        accumulation,
        link=data_link,
        forward=forward,
        backward=backward,
        layers=p.model.layers,
        sync=data_sync,
    )
    return StepTime(accumulation * (forward + backward), exposed * accumulation, wait)
