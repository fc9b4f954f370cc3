"""`caat pretrain`: train a model. By hand or under torchrun, on one process or many, one run or a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from caat.data.corpus import prepare
from conf.processes import LaunchConfig
from conf.schema import Config
from launch.config import compose, initialise, read_config
from launch.errors import STOPPED, reason, user_errors
from launch.go_on import how_to_go_on
from launch.initial import check_initial
from launch.options import options_in, take_config_dir
from launch.processes import Stopped, run_workers, under_torchrun
from launch.resume import check_restartable, check_resume, check_resume_data, restarted
from launch.run_folder import claim, leave_finished, open_run_folder
from launch.space import check_space
from launch.status import read_status, write_status
from launch.tokens import check_tokens
from launch.validate import check_data, check_device, validate

# Importing torch takes seconds: nothing here does before the configuration is known to be right.

SWEEP_FLAGS = {"-m", "--multirun"}
BEFORE_TRAINING = "interrupted before training began"


def main(argv: list[str] | None = None) -> int:
    """Train what ``argv`` describes and return the exit status.

    A user's mistake is one line on stderr and exit status 2, before any process starts or file is written.
    """
    argv = sys.argv[1:] if argv is None else argv
    with user_errors():
        folder, argv = take_config_dir(argv)
        with options_in(folder):
            return _main(argv)


def _main(argv: list[str]) -> int:
    # By the parent that made the folder and holds it; or, --queued-run, by a job that comes to it later.
    if argv[:1] in (["--run-folder"], ["--queued-run"]):
        given = Path(argv[1])
        config = read_config(given / "config.yaml")
        if argv[0] == "--queued-run" and os.environ.get("RANK", "0") == "0":
            claim(given)
            if not restarted():
                check_resume(config, given)
                write_status(given, "starting")
        return _work(config, given)
    flags = {argument.split("=")[0] for argument in argv if argument.startswith("-")}
    if flags:
        return _with_flags(flags, argv)
    config = compose(argv)
    _note_experiment(argv)
    if under_torchrun():
        validate(config, int(os.environ["WORLD_SIZE"]))
        check_restartable(config)
        return _work(config, None, argv)
    folder = set_up(config)
    if folder is None:
        return 0
    # Who is to start it again must not be the process that dies.
    if config.launch.processes == 1 and config.launch.max_restarts == 0:
        with _interrupts_kept(folder):
            return _work(config, folder, argv)
    try:
        status = run_in_processes(folder, config.launch)
    except Stopped as stop:
        if stop.code == STOPPED:
            print(how_to_go_on(argv, folder), file=sys.stderr)
        raise
    if status == STOPPED:
        print(how_to_go_on(argv, folder), file=sys.stderr)
    return status


def _with_flags(flags: set[str], argv: list[str]) -> int:
    from launch.explain import SETTINGS, no_option
    from launch.show import FLAGS, SHOW_FLAGS, show

    if flags - FLAGS - SWEEP_FLAGS:
        no_option([text for text in argv if text.split("=")[0] not in FLAGS | SWEEP_FLAGS], SETTINGS)
    if flags & SHOW_FLAGS:
        if flags & SWEEP_FLAGS:
            raise ValueError(f"{min(flags & SHOW_FLAGS)} shows one configuration: leave -m out")
        return show(argv)
    if not flags <= SWEEP_FLAGS:
        raise ValueError(f"{min(flags - SWEEP_FLAGS)} goes with --cfg, which shows the configuration")
    from launch.sweep import sweep

    return sweep([argument for argument in argv if argument not in SWEEP_FLAGS])


def _note_experiment(argv: list[str]) -> None:
    """Say on stderr if the experiment asked for is a sweep, of which this trains one run."""
    given = {text.partition("=")[0] for text in argv}
    if "experiment" not in given or os.environ.get("RANK", "0") != "0":
        return
    from launch.sweep.plan import swept_by_experiment

    with initialise():
        left = [text for text in swept_by_experiment(argv) if text.partition("=")[0] not in given]
    if left:
        print(
            f"note: this experiment is a sweep of {' '.join(left)}: -m trains all its runs", file=sys.stderr
        )


def set_up(config: Config) -> Path | None:
    """All that comes before the first process: checks, data, run folder. Raises ``ValueError``.

    None if all steps of the run are done: its folder goes on to say what it was trained with.
    """
    check_device(config)
    validate(config, config.launch.processes)
    tokens = prepare(config.data)
    check_tokens(tokens)
    check_data(config, tokens)
    state = check_resume_data(config, tokens)
    if state is None:
        check_initial(config, tokens)
    elif state.step >= config.train.steps:
        leave_finished(config)
        return None
    check_space(config)
    return open_run_folder(config)


def run_in_processes(folder: Path, launch: LaunchConfig) -> int:
    """Train the run in ``folder`` on processes of its own; returns the exit status.

    A signal to this process reaches them, and raises :class:`Stopped`: with the status `STOPPED` if they
    saved before they ended, 0 if they finished.
    """
    arguments = ["--run-folder", str(folder)]
    print(f"caat: starting {launch.processes} processes", file=sys.stderr, flush=True)
    try:
        with _interrupts_kept(folder):
            status = run_workers("launch.pretrain", arguments, launch.processes, launch.max_restarts)
    except Stopped:
        ended = read_status(folder)
        if ended == "finished":
            raise Stopped(0) from None  # the signal came when all was done but the last figures
        if ended == "starting":
            write_status(folder, "failed", BEFORE_TRAINING)
        elif ended == "running":
            write_status(folder, "failed", "ended by a signal before it could save")
        if ended != "stopped":
            raise
        raise Stopped(STOPPED) from None
    if status:
        if read_status(folder) in ("starting", "running"):
            # Killed, it could not say so itself.
            write_status(folder, "failed", reason(status))
        print(f"what was written is in {folder}", file=sys.stderr)
    return status


@contextmanager
def _interrupts_kept(folder: Path) -> Iterator[None]:
    """Ctrl-C before training began is the status of the run in ``folder`` as well."""
    try:
        yield
    except KeyboardInterrupt:
        if read_status(folder) == "starting":
            write_status(folder, "failed", BEFORE_TRAINING)
        raise


def _work(config: Config, folder: Path | None, settings: Sequence[str] | None = None) -> int:
    if os.environ.get("RANK", "0") == "0" and "--run-folder" not in sys.argv:
        print("caat: loading torch", file=sys.stderr, flush=True)
    from launch.worker import work

    work(config, folder, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
