"""The training loop, top to bottom: batches, step, metrics, validation, what all ranks decide, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from caat.data.loader import Loader
from caat.planning.costs import flops_per_token
from caat.supervision.control import Control
from caat.supervision.replicas import ReplicaGuard
from caat.supervision.signals import StoppedBySignal, StopRequest
from caat.supervision.watchdog import Watchdog
from caat.training.checkpoint.saver import SaveError, Saver
from caat.training.checkpoint.state import State
from caat.training.engine import Engine
from caat.training.memory import memory_gib
from caat.training.peak import peak_tflops
from caat.training.progress import RunProgress, loss_text
from caat.training.randomness import random_state
from caat.training.schedule import learning_rate
from caat.training.trackers import Tracker
from caat.training.trackers.samples import Samples
from conf.schema import Config


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not a finite number."""


@dataclass
class Output:
    """What the first rank writes to; the other ranks have none."""

    trackers: Sequence[Tracker]
    samples: Samples
    progress: RunProgress


@dataclass
class Supervision:
    """What looks after a run: who agrees, saves, asks it to stop, and notices when it hangs or drifts."""

    control: Control
    saver: Saver
    request: StopRequest
    watchdog: Watchdog
    guard: ReplicaGuard


def train(
    config: Config,
    engine: Engine,
    loader: Loader,
    validation: Callable[[], Iterable[tuple[Tensor, Tensor, int]]],
    start: State,
    supervision: Supervision,
    device: torch.device,
    output: Output | None,
    benchmarks: Callable[[int], dict[str, float]] | None = None,
) -> dict:
    """Train from ``start`` to ``config.train.steps`` steps; returns the last step's record.

    ``validation()`` gives this rank's held-out batches, ``benchmarks(step)`` further figures of the model,
    every ``eval.every`` steps and at the end, logged by themselves. Raises on every rank at the same step:
    :class:`NonFiniteError`, :class:`StoppedBySignal` (after saving), :class:`SaveError`, and
    :class:`~caat.supervision.replicas.DriftError`.
    """
    c, mesh, to = config.train, engine.mesh, supervision
    tokens_per_step = c.global_batch * c.sequence
    flops_per_step = flops_per_token(config.model, c.sequence) * tokens_per_step
    peak = peak_tflops(device, c.peak_tflops)
    state = start
    record: dict = {}
    due = False
    for step in range(start.step + 1, c.steps + 1):
        ratio = config.sync.ratio_of(step)
        engine.set_ratio(ratio)
        loss_before = None
        if _begins_anew(config, step):
            loss_before = engine.evaluate(_watched(validation(), to.watchdog, step))
            if output:
                output.progress.say(
                    f"sync.ratio {ratio:g} from step {step} on: validation {loss_before:.4f} before it"
                )
        to.watchdog.beat(f"reading the data of step {step}")
        started = time.perf_counter()
        mesh.tensor.reset()
        batches = [(tokens.to(device), targets.to(device)) for tokens, targets in loader.step()]
        waited = time.perf_counter() - started
        to.watchdog.beat(f"training step {step}")
        to.guard.before(step)
        rate = learning_rate(step, c.steps, config.optim)
        result = engine.step(batches, rate)
        seconds = time.perf_counter() - started
        to.guard.after(step)

        state = replace(
            state,
            step=step,
            tokens=state.tokens + tokens_per_step,
            position=loader.position,
            skipped=state.skipped + result.skipped,
            skipped_in_a_row=state.skipped_in_a_row + 1 if result.skipped else 0,
        )
        tflops = flops_per_step / seconds / 1e12 / (mesh.processes * mesh.data_size)
        record = {
            "step": step,
            "tokens": state.tokens,
            "loss": _number(result.loss),
            "ratio": ratio,
            "learning_rate": rate,
            "grad_norm": _number(result.grad_norm),
            "tokens_per_second": tokens_per_step / seconds,
            "step_seconds": seconds,
            "tflops_per_process": tflops,
            "mfu": tflops / peak if peak else None,
            "memory_gib": memory_gib(device),
            "data_wait_seconds": waited,
            "skipped_steps": state.skipped,
            **{f"tensor_parallel_{name}": n for name, n in mesh.tensor.totals().items()},
        }
        if loss_before is not None:
            record["validation_loss_before"] = _number(loss_before)
        last = step == c.steps
        validate = last or (c.eval_every > 0 and step % c.eval_every == 0) or _begins_anew(config, step + 1)
        if validate:
            see = output.samples.see if output else None
            record["validation_loss"] = _number(
                engine.evaluate(_watched(validation(), to.watchdog, step), see)
            )
        if output:
            samples = output.samples.take() if validate else []
            for tracker in output.trackers:
                tracker.log(record)
                if samples:
                    tracker.samples(record, samples)
            status = _status(record)
            output.progress.step(step, status)
            if step == start.step + 1 or validate or result.skipped or step % c.log_every == 0:
                output.progress.line(step, status)
        # Every rank counts the same steps: results are the same on all of them.
        if state.skipped_in_a_row >= c.max_skipped:
            raise NonFiniteError(
                f"stopped at step {step}: {state.skipped_in_a_row} steps in a row had a loss or gradient "
                f"that is not finite (last loss {result.loss}, gradient norm {result.grad_norm}). Lower "
                f"optim.lr ({config.optim.lr}), use a longer optim.warmup_steps, or look at the data of "
                "these steps; train.max_skipped sets how many are borne"
            )
        to.watchdog.beat(f"agreeing after step {step}")
        stop, save_failed, too_soon = to.control.maximum(
            to.request.number, int(to.saver.failed), int(not to.saver.due)
        )
        if save_failed:
            _bear(to.saver.wait, config, output)
        benchmark = benchmarks is not None and (last or step % config.eval.every == 0)
        # Benchmarks take long and may fail: what was trained is on disk first.
        due = due or benchmark or (config.checkpoint.every > 0 and step % config.checkpoint.every == 0)
        # While steps are skipped, the weights are what may be wrong: the last checkpoint is the better one.
        if last or stop or ((due or not too_soon) and not result.skipped):
            by_time, due = not (last or stop or due), False
            to.watchdog.beat(f"saving step {step}")
            now = replace(state, adam_steps=engine.adam_steps, random=random_state(), by_time=by_time)
            # That an earlier one failed must not keep this one from being written.
            _bear(to.saver.wait, config, output)
            if last or stop:
                # What the run came to is not to be lost: here a failure stops it in any case.
                to.saver.save(now)
                to.saver.wait()
            else:
                _bear(partial(to.saver.save, now), config, output)
        if stop and not last:
            raise StoppedBySignal(stop, step)
        if benchmarks is not None and benchmark:
            _bear(to.saver.wait, config, output)
            scores = _measure(partial(benchmarks, step), to.control, output)
            for tracker in output.trackers if output and scores else ():
                tracker.log({"step": step, "tokens": state.tokens, **scores})
    return record


def _measure(
    benchmarks: Callable[[], dict[str, float]], control: Control, output: Output | None
) -> dict[str, float]:
    """What ``benchmarks`` find; where they fail, on whichever ranks, that is a warning. Collective."""
    scores, problem = {}, ""
    try:
        scores = benchmarks()
    # Tasks are the programs of others.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    problems = [text for text in control.gather(problem) if text]
    if problems and output:
        output.progress.say(f"WARNING: the benchmarks failed ({problems[0]}). Training is not touched by it")
    return {} if problems else scores


def _bear(save: Callable[[], None], config: Config, output: Output | None) -> None:
    """Run ``save``; a failure is a warning, unless ``checkpoint.on_failure`` says to stop."""
    try:
        save()
    except SaveError as error:
        if config.checkpoint.on_failure == "stop":
            raise
        if output:
            output.progress.say(
                f"WARNING: no checkpoint was written ({error}). Training goes on, and the next one is tried "
                "when it is due; until then, what is trained is only in memory. Earlier checkpoints are whole"
            )


def _begins_anew(config: Config, step: int) -> bool:
    """Whether the model is another one in ``step``: from given weights, or at another ratio than before."""
    if step == 1:
        return config.initialize is not None
    return config.sync.ratio_of(step) != config.sync.ratio_of(step - 1)


def _watched(batches: Iterable, watchdog: Watchdog, step: int) -> Iterable:
    for batch in batches:
        watchdog.beat(f"validating at step {step}")
        yield batch


def _number(value: float) -> float | None:
    """JSON has no nan: a value that is not finite is null, and the step counts as skipped."""
    return value if math.isfinite(value) else None


def _status(record: dict) -> str:
    loss = loss_text(record["loss"]) + (", skipped" if record["loss"] is None else "")
    text = f"loss {loss}  {record['tokens_per_second']:,.0f} tokens/s  lr {record['learning_rate']:.2e}"
    if "validation_loss" in record:
        text += f"  validation {loss_text(record['validation_loss'])}"
    return text
