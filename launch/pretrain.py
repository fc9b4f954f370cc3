"""`caat pretrain`: trains a model, started directly or by torchrun, as one run or a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from caat.parallel.world import is_first_rank, launched, restarted, world_size
from caat.runs.status import write_status
from conf.reading.options import options_in, take_config_dir
from conf.reading.overrides import initialise
from conf.reading.saved import read_config
from conf.schema import Config
from launch.command.errors import STOPPED, user_errors
from launch.command.processes import Stopped
from launch.run.compose import compose
from launch.run.folder import claim
from launch.run.local import interrupts_kept, run_in_processes, set_up
from launch.run.resume import check_restartable, check_resume
from launch.run.resume_command import how_to_resume
from launch.run.start import Start
from launch.run.validate import validate

# Importing torch takes seconds, so nothing here imports it until the configuration has been checked.

SWEEP_FLAGS = {"-m", "--multirun"}


def main(argv: list[str] | None = None) -> int:
    """Train what ``argv`` describes and return the exit status.

    A mistake of the user gives one line on stderr and exit status 2, before any process starts or any file is
    written.
    """
    argv = sys.argv[1:] if argv is None else argv
    with user_errors():
        folder, argv = take_config_dir(argv)
        with options_in(folder):
            return _main(argv)


def _main(argv: list[str]) -> int:
    if argv[:1] == ["--run-folder"]:
        # This is a worker: its parent has created the folder and holds its lock.
        from launch.run.worker import work

        work(read_config(Path(argv[1]) / "config.yaml"), Start.from_argument(argv[2]))
        return 0
    if argv[:1] == ["--queued-run"]:
        return _queued(Path(argv[1]))
    flags = {argument.split("=")[0] for argument in argv if argument.startswith("-")}
    if flags:
        return _with_flags(flags, argv)
    config = compose(argv)
    _note_experiment(argv)
    if launched():
        validate(config, world_size())
        check_restartable(config)
        return _work(config, settings=argv)
    start = set_up(config)
    if start is None:
        return 0
    assert start.folder is not None
    # Train in this process unless restarts are wanted: a dead process cannot restart itself.
    if config.launch.processes == 1 and config.launch.max_restarts == 0:
        with interrupts_kept(start.folder):
            return _work(config, start, settings=argv)
    try:
        status = run_in_processes(start, config.launch)
    except Stopped as stop:
        if stop.code == STOPPED:
            print(how_to_resume(argv, start.folder), file=sys.stderr)
        raise
    if status == STOPPED:
        print(how_to_resume(argv, start.folder), file=sys.stderr)
    return status


def _queued(folder: Path) -> int:
    """Train the run in ``folder`` as a rank of a Slurm job queued for it."""
    config = read_config(folder / "config.yaml")
    if is_first_rank():
        claim(folder)
        if not restarted():
            check_resume(config, folder)
            write_status(folder, "starting")
    return _work(config, folder=folder)


def _with_flags(flags: set[str], argv: list[str]) -> int:
    from conf.reading.explain import SETTINGS, no_option
    from launch.run.show import FLAGS, SHOW_FLAGS, show

    if flags - FLAGS - SWEEP_FLAGS:
        no_option([text for text in argv if text.split("=")[0] not in FLAGS | SWEEP_FLAGS], SETTINGS)
    if flags & SHOW_FLAGS:
        if flags & SWEEP_FLAGS:
            raise ValueError(f"{min(flags & SHOW_FLAGS)} shows one configuration: leave -m out")
        return show(argv)
    if not flags <= SWEEP_FLAGS:
        raise ValueError(f"{min(flags - SWEEP_FLAGS)} works only with --cfg, which shows the configuration")
    from launch.sweep import sweep

    return sweep([argument for argument in argv if argument not in SWEEP_FLAGS])


def _note_experiment(argv: list[str]) -> None:
    """Print a note on stderr if the experiment is a sweep, of which this command trains only one run."""
    given = {text.partition("=")[0] for text in argv}
    if "experiment" not in given or not is_first_rank():
        return
    from launch.sweep.plan import swept_by_experiment

    with initialise():
        left = [text for text in swept_by_experiment(argv) if text.partition("=")[0] not in given]
    if left:
        print(
            f"note: this experiment is a sweep of {' '.join(left)}: -m trains all its runs", file=sys.stderr
        )


def _work(
    config: Config,
    start: Start | None = None,
    *,
    folder: Path | None = None,
    settings: Sequence[str] | None = None,
) -> int:
    if is_first_rank():
        print("caat: loading torch", file=sys.stderr, flush=True)
    from launch.run.worker import work

    work(config, start, folder=folder, settings=settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
