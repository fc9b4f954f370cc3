"""`caat pretrain`: train a model. By hand or under torchrun, on one process or many, one run or a sweep."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from caat.data.corpus import prepare
from conf.schema import Config
from launch.config import check_data, compose, read_config, validate
from launch.errors import user_errors
from launch.processes import run_workers, under_torchrun
from launch.run_folder import create_run_folder

# Importing torch takes seconds: nothing here does before the configuration is known to be right.


def main(argv: list[str] | None = None) -> int:
    """Train what ``argv`` describes and return the exit status.

    A user's mistake is one line on stderr and exit status 2, before any process starts or file is written.
    """
    argv = sys.argv[1:] if argv is None else argv
    with user_errors():
        return _main(argv)


def _main(argv: list[str]) -> int:
    if argv[:1] == ["--run-folder"]:
        folder = Path(argv[1])
        return _work(read_config(folder / "config.yaml"), folder)
    if any(argument.startswith("-") for argument in argv):
        from launch.sweep import hydra_command

        return hydra_command(argv)
    config = compose(argv)
    if under_torchrun():
        validate(config, int(os.environ["WORLD_SIZE"]))
        return _work(config, None)
    folder = set_up(config)
    if config.launch.processes == 1:
        return _work(config, folder)
    return run_in_processes(folder, config.launch.processes)


def set_up(config: Config) -> Path:
    """All that comes before the first process: checks, data, run folder. Raises ``ValueError``."""
    validate(config, config.launch.processes)
    check_data(config, prepare(config.data))
    return create_run_folder(config)


def run_in_processes(folder: Path, processes: int) -> int:
    """Train the run in ``folder`` on processes of its own; returns the exit status."""
    status = run_workers("launch.pretrain", ["--run-folder", str(folder)], processes)
    if status:
        print(f"what was written is in {folder}", file=sys.stderr)
    return status


def _work(config: Config, folder: Path | None) -> int:
    from launch.worker import work

    work(config, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
