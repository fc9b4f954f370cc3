"""A training run on this rank, from the first collective to the final figures."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from caat.parallel.membership import RefusedError
from caat.planning.costs import flops_per_token
from caat.runs.status import write_status
from caat.supervision.control import Control
from caat.supervision.replicas import DriftError
from caat.supervision.signals import StoppedBySignal, StopRequest
from caat.supervision.watchdog import Watchdog
from caat.training.checkpoint.saver import SaveError
from caat.training.estimate import forecast, precision_note, product_rate
from caat.training.loop import NonFiniteError, train
from caat.training.output import Output
from conf.schema import Config
from launch.command.errors import DRIFTED, NOT_FINITE, NOT_SAVED, STOPPED, USER_ERROR, only_warned
from launch.run.agreement import check_ranks
from launch.run.build import build_run
from launch.run.checkpoint import DamagedError
from launch.run.joining import leave
from launch.run.start import Start
from launch.run.summary import baselines, summarise

# Errors raised on all ranks at the same step, whose message says what happened; and their exit statuses.
ENDINGS: dict[type[Exception], int] = {
    NonFiniteError: NOT_FINITE,
    DriftError: DRIFTED,
    SaveError: NOT_SAVED,
    StoppedBySignal: STOPPED,
    DamagedError: USER_ERROR,
    RefusedError: USER_ERROR,
}


def train_run(
    config: Config,
    start: Start,
    folder: Path,
    *,
    device: torch.device,
    request: StopRequest,
    watchdog: Watchdog,
) -> None:
    """Train the run of ``start`` in its ``folder``. Collective.

    If training stops early, writes the status and raises one of :data:`ENDINGS` on all ranks at the same
    step. Raises ``ValueError`` on all ranks if their settings or texts differ.
    """
    control, c = Control(), config.train
    check_ranks(config, start.text, control)
    run = build_run(config, start, folder, device=device, control=control, request=request, watchdog=watchdog)
    # The final figures need these, and by then the text may be gone.
    base = baselines(start.tokens, c.sequence, c.eval_sequences)
    rate = product_rate(device, c.precision)
    expected = forecast(_step_seconds(config, rate, control), c.steps - run.state.step)
    if run.output:
        write_status(folder, "running")
    summary: dict = {}
    # Empty after other errors: the worker records those, because another rank may know the cause.
    status, why = "", ""
    try:
        if run.output and (note := precision_note(device, c.precision, rate)):
            run.say(note)
        run.say(expected)
        request.training = True
        record = train(run)
        watchdog.rest()
        status = "finished"
        if run.output:
            with only_warned(f"the figures of {folder}, which is trained and saved,"):
                summary = summarise(config, run.engine.mesh, record, base, folder)
    except StoppedBySignal as stop:
        leave(run.engine.live.islands)
        status, why = "stopped", str(stop)
        raise
    except tuple(ENDINGS) as error:
        leave(run.engine.live.islands)
        status, why = "failed", str(error)
        # A save that is still being written is good: finish it.
        run.saver.finish()
        raise
    finally:
        watchdog.rest()
        if run.output:
            if status:
                write_status(folder, status, why)
                request.closing = True
                run.saver.after.finish(run.say)
                run.saver.retain()
            run.output.progress.close()
            _close(run.output, config, summary, folder)


def _step_seconds(config: Config, rate: float, control: Control) -> float:
    """Estimate the seconds of a step on the slowest rank; ``rate``: this one's FLOP/s. Collective."""
    c = config.train
    work = flops_per_token(config.model, c.sequence) * c.global_batch * c.sequence / dist.get_world_size()
    # Control exchanges whole numbers.
    return control.maximum(round(1e6 * work / rate))[0] / 1e6


def _close(output: Output, config: Config, summary: dict, folder: Path) -> None:
    """Close the trackers with the final figures; hand them the artifacts of a finished run if asked to."""
    if config.tracker.artifacts and summary:
        from launch.report import write_report

        for tracker in output.trackers:
            tracker.keep("checkpoint", Path(summary["checkpoint"]))
        with only_warned("the report for the trackers"):
            write_report([str(folder)], str(folder / "report"))
            for tracker in output.trackers:
                tracker.keep("report", folder / "report")
    for tracker in output.trackers:
        tracker.close(summary)
