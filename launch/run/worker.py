"""One process of a training run: its checks, its process group, and its exit."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from caat.parallel.world import is_first_rank, local_rank, local_world_size, restarted, world_size
from caat.runs.status import read_status, write_status
from caat.supervision.allocator import keep_large_buffers
from caat.supervision.device import choose_device, side_store, start_process_group, stop_process_group
from caat.supervision.signals import StoppedBySignal, StopRequest
from caat.supervision.watchdog import Watchdog
from conf.checks import named_line
from conf.schema import Config
from launch.command.errors import STOPPED
from launch.run.folder import leave_finished, open_run_folder
from launch.run.resume import check_resume, given_folder
from launch.run.resume_command import how_to_resume
from launch.run.start import Start, make_start
from launch.run.trainer import ENDINGS, train_run

# How long a rank that lost a connection waits for the rank that failed first to report its error.
LOST_CONNECTION_SECONDS = 3.0


def work(
    config: Config,
    start: Start | None = None,
    *,
    folder: Path | None = None,
    settings: Sequence[str] | None = None,
) -> None:
    """Train as this rank of the world (or as a world of one); every rank of a run makes the same call.

    ``start`` was decided by the parent process. If None, this rank makes it, for the run in ``folder`` or,
    if that is None too, for a new folder that the first rank creates. ``settings`` are the user's, for the
    resume command printed after a stop; if None, the parent prints it. Raises ``ValueError`` for a mistake
    of the user before the process group starts. Exits with a status of ``launch.command.errors`` if training
    stops early.
    """
    world = world_size()
    config.check_layout(world)
    place = local_rank(), local_world_size(unknown=world)
    device = choose_device(config.launch.device, *place, config.launch.backend)
    if device.type == "cpu":
        keep_large_buffers()
    _set_numerics(config)
    start = _verified(config, start, folder)
    if start.step >= config.train.steps:
        if is_first_rank():
            leave_finished(config, start.folder)
        return

    known = start.folder or given_folder(config)
    if restarted() and known is not None and read_status(known) == "stopped":
        # torchrun takes a process that saved and stopped on a signal for one that died, and restarts it.
        sys.exit(STOPPED)
    with StopRequest(is_first_rank()) as request:
        if start.folder is not None:
            request.record = partial(write_status, start.folder, "failed")
        start_process_group(device, backend=config.launch.backend)
        watchdog = Watchdog(side_store(), dist.get_rank(), world, config.launch.hang_seconds)
        status = 0
        try:
            run = _agree_on(start.folder, config)
            watchdog.record = request.record = partial(write_status, run, "failed")
            with _failures_kept(run):
                train_run(config, start, run, device=device, request=request, watchdog=watchdog)
        except tuple(ENDINGS) as error:
            if dist.get_rank() == 0:
                stopped = type(error) is StoppedBySignal
                print(f"caat: {'' if stopped else 'error: '}{error}", file=sys.stderr)
                if stopped and settings is not None:
                    print(how_to_resume(settings, run, torchrun=world > 1), file=sys.stderr)
            status = ENDINGS[type(error)]
        except Exception as error:
            _fail(error, watchdog)
            raise
        # All ranks get here or none does: after any other error, others may still be in a collective.
        stop_process_group()
        watchdog.stop()
    if status:
        sys.exit(status)


def _verified(config: Config, start: Start | None, folder: Path | None) -> Start:
    """Return ``start`` once verified, or one that this rank makes."""
    if start is None:
        return make_start(config, world_size(), folder)
    start.verify(config)
    if not restarted():
        return start
    state = check_resume(config, start.folder)
    return replace(start, step=state.step if state else 0)


@contextmanager
def _failures_kept(run: Path) -> Iterator[None]:
    """Record a failure before training starts in the status of ``run``."""
    try:
        yield
    except tuple(ENDINGS) as error:
        if dist.get_rank() == 0 and read_status(run) == "starting":
            write_status(run, "failed", str(error))
        raise


def _fail(error: Exception, watchdog: Watchdog) -> None:
    """End this process so that the first rank to fail is the one that reports; return in a world of one.

    Also returns for a mistake of the user: all ranks raise it, and the launcher reports it.
    """
    if dist.get_world_size() == 1 or isinstance(error, ValueError):
        if dist.get_rank() == 0:
            watchdog.record(str(error) or type(error).__name__)
        watchdog.stop()
        return
    if _lost_connection(error):
        # Usually not the cause: the rank at the other end is gone, and may have reported why.
        why = f"rank {dist.get_rank()} lost the connection to another rank ({named_line(error)})"
        if watchdog.claim_failure("lost the connection to another rank", LOST_CONNECTION_SECONDS):
            if "by peer" not in str(error):
                # It may be the cause after all: messages of different sizes, or no memory for NCCL.
                traceback.print_exception(error)
            print(f"caat: error: {why}", file=sys.stderr)
            watchdog.record(why)
    elif watchdog.claim_failure(f"{type(error).__name__}: {error}"):
        traceback.print_exception(error)
        print(f"caat: error: rank {dist.get_rank()}: {error}", file=sys.stderr)
        watchdog.record(f"rank {dist.get_rank()}: {error}")
    sys.stderr.flush()
    # sys.exit would wait for gloo's threads and for the thread of a save in flight.
    os._exit(1)


def _lost_connection(error: Exception) -> bool:
    """Return whether ``error`` may say that another rank is gone; NCCL and the store have their own types."""
    of_gloo = isinstance(error, RuntimeError) and ("peer" in str(error) or "gloo" in str(error))
    return of_gloo or isinstance(error, dist.DistBackendError | dist.DistNetworkError)


def _agree_on(folder: Path | None, config: Config) -> Path:
    """Return the run folder on all ranks; the first rank creates it if there is none yet.

    Raises ``ValueError`` on all ranks if it cannot.
    """
    found: list[str | None] = [None if folder is None else str(folder), None]
    if folder is None and dist.get_rank() == 0:
        try:
            found = [str(open_run_folder(config)), None]
        except ValueError as error:
            found = [None, str(error)]
    dist.broadcast_object_list(found, src=0)
    name, problem = found
    if name is None:
        raise ValueError(problem)
    return Path(name)


def _set_numerics(config: Config) -> None:
    torch.manual_seed(config.seed)
    if config.train.deterministic:
        # cuBLAS is deterministic only if this is set before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = config.train.tf32
