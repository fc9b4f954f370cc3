"""The training loop: step, record, validation, agreement between ranks, checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from caat.data.prefetch import Prefetch
from caat.supervision.control import Control
from caat.supervision.replicas import ReplicaGuard
from caat.supervision.signals import StoppedBySignal, StopRequest
from caat.supervision.watchdog import Watchdog
from caat.training.checkpoint.saver import Saver
from caat.training.checkpoint.state import State
from caat.training.engine import Engine, StepResult
from caat.training.held_out import HeldOutText
from caat.training.output import Output
from caat.training.progress import loss_text
from caat.training.randomness import random_state
from caat.training.record import Recorder
from caat.training.saving import SavePolicy
from caat.training.schedule import learning_rate
from caat.training.step import take_step
from conf.schema import Config


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


@dataclass
class Supervision:
    """Supervision of a run: agreement between ranks, stop signals, detection of hangs and replica drift."""

    control: Control
    request: StopRequest
    watchdog: Watchdog
    guard: ReplicaGuard


@dataclass
class Training:
    """The components of a run on this rank, and its training state.

    ``validation`` has this rank's held-out batches, and ``test`` those for the end. ``benchmarks(step)``
    returns scores of the model; it is called every ``eval.every`` steps and at the end, and the scores are
    logged as a separate record.
    """

    config: Config
    engine: Engine
    loader: Prefetch
    validation: HeldOutText
    state: State
    saver: Saver
    supervision: Supervision
    device: torch.device
    output: Output | None = None
    benchmarks: Callable[[int], dict[str, float]] | None = None
    test: HeldOutText | None = None

    def say(self, text: str) -> None:
        if self.output:
            self.output.progress.say(text)

    def validate(self, step: int, sampled: bool = False) -> dict[str, float | None]:
        """Return the held-out losses; ``sampled``: also take samples of text with theirs. Collective."""
        see = self.output.samples.see if self.output and sampled else None
        beat = partial(self.supervision.watchdog.beat, f"validating at step {step}")
        return self.validation.losses(self.engine, "validation_loss", beat, see)


def train(run: Training) -> dict:
    """Train from ``run.state`` to ``train.steps`` steps; return the record of the last step. Collective.

    Raises on every rank at the same step: :class:`NonFiniteError`, :class:`StoppedBySignal` (after saving),
    :class:`~caat.training.checkpoint.saver.SaveError` and :class:`~caat.supervision.replicas.DriftError`.
    """
    config, to, first = run.config, run.supervision, run.state.step + 1
    steps = config.train.steps
    recorder = Recorder(config, run.engine.mesh, run.device)
    saving = SavePolicy(run.saver, config.checkpoint, to.control, run.say)
    record: dict = {}
    for step in range(first, steps + 1):
        last = step == steps
        tested = last and run.test is not None
        ratio, rate = config.sync.ratio_of(step), learning_rate(step, steps, config.optim)
        run.engine.set_ratio(ratio)
        before = _validation_before(run, step, ratio)
        if run.output:
            run.output.profiler.start(step)
        taken = take_step(
            step,
            rate,
            engine=run.engine,
            loader=run.loader,
            guard=to.guard,
            watchdog=to.watchdog,
            last=last,
        )
        run.state = _after(run, step, taken.result)
        for note in taken.outer.notes if taken.outer else ():
            run.say(note)
        record = recorder.record(taken, run.state, ratio=ratio, learning_rate=rate) | before
        if last or _is_due(config.train.eval_every, step) or _begins_anew(config, step + 1):
            record |= run.validate(step, sampled=True)
            if tested:
                _check_finite(run, taken.result)
                _save(run, saving, must=True)
                record |= _test(run)
            record |= {f"epochs/{source}": number for source, number in run.loader.epochs.items()}
        if run.output:
            shown = step == first or "validation_loss" in record or taken.result.skipped
            run.output.record(record, line=shown or step % config.train.log_every == 0)
        _check_finite(run, taken.result)

        to.watchdog.beat(f"agreeing after step {step}")
        stop = saving.agree(to.request)
        if run.output:
            run.output.profiler.stop(step, must=last or stop > 0)
        benchmark = run.benchmarks is not None and (last or _is_due(config.eval.every, step))
        saving.note_due(step, benchmark)
        must = last or stop > 0
        if not tested and saving.should_save(skipped=taken.result.skipped, must=must):
            _save(run, saving, must=must)
        if stop and not last:
            raise StoppedBySignal(stop, step)
        if benchmark:
            saving.wait()
            _log_benchmarks(run, step)
    return record


def _save(run: Training, saving: SavePolicy, *, must: bool) -> None:
    """Save the run as it is; ``must``: training ends here. Collective."""
    run.supervision.watchdog.beat(f"saving step {run.state.step}")
    saving.save(replace(run.state, random=random_state()), must=must)


def _test(run: Training) -> dict[str, float | None]:
    """Return the losses of the test split. Collective.

    It is read whole, which may take long: save before, or a kill would lose the steps since the last save.
    """
    assert run.test is not None
    beat = partial(run.supervision.watchdog.beat, "computing the loss of the test split")
    return run.test.losses(run.engine, "test_loss", beat)


def _validation_before(run: Training, step: int, ratio: float) -> dict[str, float | None]:
    """Return the validation loss before ``step`` if the model changes in it, otherwise nothing."""
    if not _begins_anew(run.config, step):
        return {}
    loss = run.validate(step)["validation_loss"]
    run.say(f"sync.ratio {ratio:g} from step {step} on: validation {loss_text(loss)} before it")
    return {"validation_loss_before": loss}


def _after(run: Training, step: int, result: StepResult) -> State:
    """Return the training state after ``step``."""
    c, before = run.config.train, run.state
    return replace(
        before,
        step=step,
        tokens=before.tokens + c.global_batch * c.sequence,
        position=run.loader.position,
        skipped=before.skipped + result.skipped,
        skipped_in_a_row=before.skipped_in_a_row + 1 if result.skipped else 0,
    )


def _check_finite(run: Training, result: StepResult) -> None:
    """Raise :class:`NonFiniteError` after too many skipped steps. All ranks have the same count."""
    state, config = run.state, run.config
    if state.skipped_in_a_row >= config.train.max_skipped:
        raise NonFiniteError(
            f"stopped at step {state.step}: {state.skipped_in_a_row} steps in a row had a loss or gradient "
            f"that is not finite (last loss {result.loss}, gradient norm {result.grad_norm}). Lower "
            f"optim.lr ({config.optim.lr}), use a longer optim.warmup_steps, or look at the data of "
            "these steps; train.max_skipped sets how many are allowed"
        )


def _log_benchmarks(run: Training, step: int) -> None:
    """Run the benchmarks; a failure on any rank is only a warning. Collective."""
    assert run.benchmarks is not None
    scores, problem = {}, ""
    try:
        scores = run.benchmarks(step)
    # Tasks are third-party code and may raise anything.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    problems = [text for text in run.supervision.control.gather(problem) if text]
    if problems:
        run.say(f"WARNING: the benchmarks failed ({problems[0]}). Training continues")
    elif run.output and scores:
        run.output.scores({"step": step, "tokens": run.state.tokens, **scores})


def _begins_anew(config: Config, step: int) -> bool:
    """Return whether the model changes in ``step``: it starts from given weights, or the ratio changes."""
    if step == 1:
        return config.initialize is not None
    return config.sync.ratio_of(step) != config.sync.ratio_of(step - 1)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
