"""Peak memory of one process in a step, by component."""

from __future__ import annotations

from dataclasses import dataclass, replace

from caat.planning.activations import (
    Pass,
    block_bytes,
    block_work_bytes,
    head_work_bytes,
    logit_bytes,
    loss_peak_bytes,
    recomputed_bytes,
)
from caat.planning.parameters import local_numbers
from caat.planning.zero import Holding, holding
from conf.optim import OptimConfig


@dataclass(frozen=True)
class Memory:
    """Bytes by component. ``moment`` is when the sum is largest in a step: loss, backward, reduce or step."""

    moment: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    # Gathered weights, buckets of gradients to send, temporaries of the optimizer.
    buffers: int

    @property
    def total(self) -> int:
        parts = self.weights, self.gradients, self.optimizer, self.activations, self.logits, self.buffers
        return sum(parts)


def memory(
    p: Pass,
    replicas: int,
    stage: int,
    precision: str,
    accumulation: int,
    *,
    optim: OptimConfig | None = None,
    kept: int = 0,
) -> Memory:
    """Return the peak memory of an optimizer step of ``accumulation`` passes ``p``.

    ``kept`` are the bytes that messages between replicas keep; they count as the optimizer's.
    """
    held = holding(local_numbers(p.model, p.shards, p.processes), replicas, stage, precision, optim)
    held = replace(held, optimizer=held.optimizer + kept)
    # Before there are gradients, the bucket is allocated but not written to: on a CPU it does not count.
    bucket = held.bucket if p.cuda else 0
    return max(_moments(p, held, bucket, accumulation), key=lambda moment: moment.total)


def _moments(p: Pass, held: Holding, bucket: int, accumulation: int) -> list[Memory]:
    earlier = held.accumulated if accumulation > 1 else 0
    bucket_before = bucket if accumulation > 1 else 0
    kept, logits = block_bytes(p), logit_bytes(p)
    head_gradient = p.vocabulary * p.model.hidden * p.element_size

    def moment(
        name: str, gradients: int = 0, activations: int = 0, logits: int = 0, buffers: int = 0
    ) -> Memory:
        gradients += held.gradients
        return Memory(name, held.weights, gradients, held.optimizer, activations, logits, buffers)

    return [
        moment("loss", earlier, kept, logits + loss_peak_bytes(p), held.gathered + bucket_before),
        moment("backward", earlier, kept, head_work_bytes(p), held.gathered + bucket_before),
        moment(
            "backward",
            earlier + head_gradient,
            kept + block_work_bytes(p) + recomputed_bytes(p),
            0,
            held.gathered + bucket,
        ),
        moment("reduce", held.after_backward, 0, 0, held.gathered),
        moment("step", 0, 0, 0, held.step),
    ]
