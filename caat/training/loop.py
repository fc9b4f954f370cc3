"""The training loop, top to bottom: batches, step, metrics, validation, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caat.data.loader import Loader
from caat.training.costs import flops_per_token
from caat.training.device import memory_gib, peak_tflops
from caat.training.engine import Engine
from caat.training.progress import RunProgress
from caat.training.schedule import learning_rate
from caat.training.trackers import Tracker
from conf.schema import Config


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not a finite number."""


@dataclass
class Output:
    """What the first rank writes to; the other ranks have none."""

    trackers: Sequence[Tracker]
    progress: RunProgress


def train(
    config: Config,
    engine: Engine,
    loader: Loader,
    validation: Callable[[], Iterable[tuple[Tensor, Tensor, int]]],
    save: Callable[[int], None],
    device: torch.device,
    output: Output | None,
) -> dict:
    """Train for ``config.train.steps`` steps; returns the last step's record.

    ``validation()`` gives this rank's held-out batches; ``save(step)`` writes a checkpoint, on all ranks.
    Raises :class:`NonFiniteError` on every rank at the same step.
    """
    c, mesh = config.train, engine.mesh
    tokens_per_step = c.global_batch * c.sequence
    flops_per_step = flops_per_token(config.model, c.sequence) * tokens_per_step
    peak = peak_tflops(device, c.peak_tflops)
    skipped = skipped_in_a_row = 0
    record: dict = {}
    for step in range(1, c.steps + 1):
        started = time.perf_counter()
        mesh.tensor.reset()
        batches = [(tokens.to(device), targets.to(device)) for tokens, targets in loader.step()]
        waited = time.perf_counter() - started
        rate = learning_rate(step, c.steps, config.optim)
        result = engine.step(batches, rate)
        seconds = time.perf_counter() - started

        tflops = flops_per_step / seconds / 1e12 / (mesh.processes * mesh.data_size)
        skipped += result.skipped
        skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
        record = {
            "step": step,
            "tokens": step * tokens_per_step,
            "loss": _number(result.loss),
            "learning_rate": rate,
            "grad_norm": _number(result.grad_norm),
            "tokens_per_second": tokens_per_step / seconds,
            "step_seconds": seconds,
            "tflops_per_process": tflops,
            "mfu": tflops / peak if peak else None,
            "memory_gib": memory_gib(device),
            "data_wait_seconds": waited,
            "skipped_steps": skipped,
            **{f"tensor_parallel_{name}": n for name, n in mesh.tensor.totals().items()},
        }
        last = step == c.steps
        validate = last or (c.eval_every > 0 and step % c.eval_every == 0)
        if validate:
            record["validation_loss"] = engine.evaluate(validation())
        if output:
            for tracker in output.trackers:
                tracker.log(record)
            status = _status(record)
            output.progress.step(step, status)
            if step == 1 or validate or result.skipped or step % c.log_every == 0:
                output.progress.line(step, status)
        # Every rank counts the same steps: results are the same on all of them.
        if skipped_in_a_row >= c.max_skipped:
            raise NonFiniteError(
                f"stopped at step {step}: {skipped_in_a_row} steps in a row had a loss or gradient that "
                f"is not finite (last loss {result.loss}, gradient norm {result.grad_norm}). Lower optim.lr "
                f"({config.optim.lr}), use a longer optim.warmup_steps, or look at the data of these steps; "
                "train.max_skipped sets how many are borne"
            )
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            save(step)
    return record


def _number(value: float) -> float | None:
    """JSON has no nan: a value that is not finite is null, and the step counts as skipped."""
    return value if math.isfinite(value) else None


def _status(record: dict) -> str:
    loss = "not finite, skipped" if record["loss"] is None else f"{record['loss']:.4f}"
    text = f"loss {loss}  {record['tokens_per_second']:,.0f} tokens/s  lr {record['learning_rate']:.2e}"
    if "validation_loss" in record:
        text += f"  validation {record['validation_loss']:.4f}"
    return text
