"""One timed training step: forward and backward of its micro-batches, optimizer, exchange with islands."""

from __future__ import annotations

import time
from dataclasses import dataclass

from caat.data.prefetch import Prefetch
from caat.supervision.replicas import ReplicaGuard
from caat.supervision.watchdog import Watchdog
from caat.training.engine import Engine, StepResult
from caat.training.islands.outer_steps import OuterStep


@dataclass(frozen=True)
class TakenStep:
    """The result of a step and its duration: ``waited`` seconds for data, ``seconds`` in total."""

    result: StepResult
    # None: there are no islands.
    outer: OuterStep | None
    seconds: float
    waited: float


def take_step(
    step: int,
    learning_rate: float,
    *,
    engine: Engine,
    loader: Prefetch,
    guard: ReplicaGuard,
    watchdog: Watchdog,
    last: bool = False,
) -> TakenStep:
    """Train on the next global batch, and exchange with other islands if it is due. Collective.

    Raises :class:`~caat.supervision.replicas.DriftError` if the step is checked and replicas differ.
    """
    watchdog.beat(f"reading the data of step {step}")
    started = time.perf_counter()
    engine.mesh.tensor.ledger.reset()
    engine.mesh.data.start_step(step)
    engine.mesh.islands.ledger.reset()
    batches = loader.step()
    waited = time.perf_counter() - started
    watchdog.beat(f"training step {step}")
    guard.before(step)
    result = engine.step(batches, learning_rate, loader.counted)
    outer = engine.outer_step(step, last=last)
    seconds = time.perf_counter() - started
    guard.after(step)
    return TakenStep(result, outer, seconds, waited)
