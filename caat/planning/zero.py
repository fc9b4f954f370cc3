"""Memory of DeepSpeed (0.19) for a model of n parameters, by ZeRO stage, on one of d replicas.

In bytes, from measuring every allocation of a step and finding it in DeepSpeed's code; b = min(n, bucket):

    stage    weights   optimizer      gradients, always   later micro-batches   bucket   optimizer step
    fp32 0   4 n       4 s n          -                   4 n                   -        4 n + 4 b
    fp32 1   4 n       (4 + 4 s) n/d  -                   4 n                   4 b      (8 + 4 t) n/d
    fp32 2   4 n       (4 + 4 s) n/d  -                   4 n / d               4 b      (8 + 4 t) n/d
    fp32 3   4 n / d   (4 + 4 s) n/d  4 n / d             -                     4 b      (4 + 4 t) n/d
    bf16 1   2 n       (4 + 4 s) n/d  4 n                 -                     -        2 n + 4 t n/d
    bf16 2   2 n       (4 + 4 s) n/d  -                   4 n / d               2 b      (4 + 4 t) n/d
    bf16 3   2 n / d   (4 + 4 s) n/d  4 n / d             -                     2 b      (4 + 4 t) n/d

The optimizer has a float32 copy of the weights (except at stage 0 in float32) and s numbers of state for
each: 2 for AdamW, its moments. Its step creates t temporaries as large as its partition. At stage 3
the full weights are gathered as long as they and their use in the backward pass are within DeepSpeed's limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from caat.optim.kinds import kinds_of, saved_numbers
from conf.optim import OptimConfig

# Numbers in a bucket of DeepSpeed, as set by the engine unless the model is smaller.
BUCKET = 500_000_000
# stage3_max_live_parameters and stage3_max_reuse_distance: weights used further apart are gathered again.
LIVE = 1_000_000_000
# stage3_param_persistence_threshold: smaller weights are not partitioned at stage 3.
PERSISTENT = 100_000
# Temporaries of an optimizer's step, each as large as its partition.
TEMPORARIES = {"adamw": 2, "lamb": 0, "sgd": 1}
# Stages 1 and 2 pad each optimizer group to a multiple of this many numbers per replica.
ALIGNMENT = 2


@dataclass(frozen=True)
class Holding:
    """Bytes on one process: the first three always, the others in addition at some moment of a step."""

    weights: int
    optimizer: int
    gradients: int
    # Weights gathered from other replicas during a pass.
    gathered: int
    # Gradients accumulated over earlier micro-batches of the step.
    accumulated: int
    # Buffer in which gradients are collected for sending.
    bucket: int
    # Gradients at the end of the last backward pass, the bucket included.
    after_backward: int
    # While the optimizer steps.
    step: int


def holding(
    numbers: int, replicas: int, stage: int, precision: str, optim: OptimConfig | None = None
) -> Holding:
    """Return the bytes of the table above; ``stage`` is the one that the engine runs (never 0 in bf16)."""
    assert (stage, precision) != (0, "bf16"), "the engine runs stage 1 instead"
    n, part, size = numbers, -(-numbers // replicas), 2 if precision == "bf16" else 4
    bucket = min(n, BUCKET) * size
    optim = optim or OptimConfig()
    # The master weights and the state.
    optimizer = 4 * saved_numbers(kinds_of(optim))
    temporaries = 4 * TEMPORARIES[optim.name]
    if stage == 0:
        return Holding(4 * n, (optimizer - 4) * n, 0, 0, 4 * n, 0, 4 * n, 4 * n + bucket)
    held, temporaries = optimizer * part, temporaries * part
    if stage == 3:
        gathered = size * min(n, LIVE) if replicas > 1 else 0
        always = 4 * part + bucket
        return Holding(size * part, held, always, gathered, 0, 0, 0, 4 * part + temporaries)
    if stage == 1 and precision == "bf16":
        sent = bucket if replicas > 1 else 0
        return Holding(2 * n, held, 4 * n, 0, 0, 0, sent, 2 * n + temporaries)
    step = (4 if precision == "bf16" else 8) * part + temporaries
    if stage == 1:
        return Holding(4 * n, held, 0, 0, 4 * n, bucket, 4 * n + bucket, step)
    return Holding(size * n, held, 0, 0, 4 * part, bucket, 4 * part + bucket, step)
