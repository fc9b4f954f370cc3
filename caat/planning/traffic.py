"""Bytes that a process puts into collectives in one optimizer step, by axis, and how long they take."""

from __future__ import annotations

from dataclasses import dataclass

from caat.planning.activations import WIDE, Pass
from caat.planning.costs import recomputed_flops_per_token, sync_bytes
from caat.planning.prediction import Link, predict
from caat.planning.zero import gathers_again
from conf.sync import WireFormat


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute: float
    tensor_exposed: float
    data_exposed: float

    @property
    def seconds(self) -> float:
        return self.compute + self.tensor_exposed + self.data_exposed


def tensor_bytes(p: Pass, accumulation: int, wire: WireFormat) -> int:
    """Both directions: inside the layers, embedding, loss, and the gradients of the norms (docs)."""
    if p.processes == 1:
        return 0
    inside = 2 * sync_bytes(p.model, p.channels, p.tokens, wire)
    embedding_backward = p.tokens * wire.token_bytes(p.model.hidden)
    return accumulation * (inside + embedding_backward + sum(_waited_for(p)))


def _waited_for(p: Pass) -> tuple[int, ...]:
    """Bytes of the messages that nothing hides: the embedding's forward, two of the loss, the norms'."""
    c = p.model
    norms = (2 * c.layers + 1) * c.hidden * WIDE
    return c.hidden * p.tokens * p.element_size, p.tokens * WIDE, 2 * p.tokens * WIDE, norms


def data_messages(
    numbers: int, replicas: int, stage: int, precision: str, accumulation: int
) -> dict[str, int]:
    """What DeepSpeed sends in one step, by kind of collective, in bytes of the whole message.

    Gradients are all-reduced at every stage below 3, at stage 2 after every micro-batch; the updated weights
    are gathered at stages 1 and 2. At stage 3 gradients are reduced and scattered after every micro-batch,
    and weights gathered once, or for every pass if the model is too large to keep them.
    """
    if replicas == 1:
        return {}
    size = numbers * (2 if precision == "bf16" else WIDE)
    if stage == 0:
        return {"all_reduce": size}
    if stage < 3:
        return {"all_reduce": size * (accumulation if stage == 2 else 1), "all_gather": size}
    passes = 2 * accumulation if gathers_again(numbers) else 1
    return {"reduce_scatter": size * accumulation, "all_gather": size * passes}


def data_seconds(messages: dict[str, int], replicas: int, link: Link) -> float:
    """As rings: an all-reduce goes round twice, the others once."""
    seconds = 0.0
    for kind, size in messages.items():
        rounds = 2 if kind == "all_reduce" else 1
        seconds += link.all_reduce_seconds(size, replicas) * rounds / 2
    return seconds


def data_wait(
    numbers: int,
    replicas: int,
    stage: int,
    precision: str,
    accumulation: int,
    link: Link,
    forward: float,
    backward: float,
    layers: int,
) -> float:
    """Seconds of a step in which a process only waits for the messages of data parallelism.

    ``forward`` and ``backward`` are the seconds of arithmetic of a micro-batch. Below stage 3 DeepSpeed waits
    for every message, as its ``overlap_comm`` is off. At stage 3 it is on: weights are fetched ahead and
    gradients sent beside the arithmetic, and what takes longer than that is waited for; so is the share of
    one layer, since nothing comes before the first weights, nor after the last gradients.
    """
    messages = data_messages(numbers, replicas, stage, precision, accumulation)
    if stage < 3 or replicas == 1:
        return data_seconds(messages, replicas, link)
    once = data_seconds({"reduce_scatter": messages["reduce_scatter"]}, replicas, link) / accumulation
    fetched = max(once / layers, once - forward)
    if gathers_again(numbers):
        return accumulation * (fetched + max(once / layers, 2 * once - backward))
    return fetched + accumulation * max(once / layers, once - backward)


def step_time(
    p: Pass,
    ratio: float,
    overlap: bool,
    accumulation: int,
    wire: WireFormat,
    flops_per_second: float,
    tensor_link: Link,
    numbers: int,
    replicas: int,
    stage: int,
    precision: str,
    data_link: Link,
) -> StepTime:
    """Of ``accumulation`` passes by each of ``replicas`` at a ZeRO ``stage``, ``numbers`` weights a process.

    What is computed again is added to the arithmetic; no tensor-parallel message hides behind it.
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
        numbers, replicas, stage, precision, accumulation, data_link, forward, backward, p.model.layers
    )
    return StepTime(accumulation * (forward + backward), exposed * accumulation, wait)
