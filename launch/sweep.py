"""What Hydra itself does for `caat pretrain`: sweeps (-m), help, and showing the configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from conf.schema import Config
from launch.config import build, compose, initialise, parse_overrides, validate
from launch.errors import user_errors
from launch.explain import first_line
from launch.processes import Stopped, under_torchrun

SWEEP_FLAGS = {"-m", "--multirun"}
FLAGS = SWEEP_FLAGS | {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
FLAGS |= {"--resolve", "--package", "-p", "--shell-completion", "-sc"}


def hydra_command(argv: list[str]) -> int:
    """Hand ``argv`` with one of Hydra's `FLAGS` to Hydra; the status is 1 if a run of a sweep failed.

    Raises ``ValueError`` for an option that is not known, and for a mistake in any run of a sweep before
    the first one starts.
    """
    for argument in argv:
        if argument.startswith("-") and argument.split("=")[0] not in FLAGS:
            raise ValueError(f"{argument} is not an option: give settings as key=value (see --help)")
    failed: list[str] = []
    runs: list[Config] = []
    if SWEEP_FLAGS & set(argv):
        if under_torchrun():
            raise ValueError("-m starts the processes of each run itself: leave torchrun out")
        names, runs = _check_sweep([text for text in argv if not text.startswith("-")])
        argv = argv + names

    def job(config: DictConfig) -> None:
        folder = HydraConfig.get().runtime.output_dir
        number = HydraConfig.get().job.num
        print(f"run {number}: {folder}", flush=True)
        if status := _train(runs[number] if runs else build(config, Config), folder):
            failed.append(f"{Path(folder).name} (status {status})")

    # hydra.main reads the command line of the process.
    sys.argv = ["caat pretrain", *argv]
    hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(job)()
    if failed:
        print(f"caat: {len(failed)} of the runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _train(config: Config, folder: str) -> int:
    """One run of the sweep, always in processes of its own: nothing of one run reaches the next."""
    from launch.pretrain import run_in_processes, set_up

    config.run.dir = folder
    try:
        with user_errors():
            return run_in_processes(set_up(config), config.launch)
    except Stopped:
        raise
    except SystemExit as end:
        return int(end.code or 0)


def _check_sweep(overrides: list[str]) -> tuple[list[str], list[Config]]:
    """Check every run of the sweep: extra overrides that name its folders by what varies, and the runs."""
    with initialise():
        parse_overrides(overrides)
        parsed = parse_overrides([*_params(overrides), *overrides])
        fixed = [override.get_key_element() for override in parsed if not override.is_sweep_override()]
        try:
            runs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        except HydraException as error:
            raise ValueError(f"{first_line(error)}: list the values, as in sync.ratio=1,0.5") from error
    if len(runs) == 1:
        raise ValueError("-m trains once for each of several values and none are given: sync.ratio=1,0.5")
    if "run.dir" in fixed:
        raise ValueError("run.dir is one folder for all runs of -m: give hydra.sweep.dir=... instead")
    configs = [compose(run) for run in runs]
    for config in configs:
        validate(config, config.launch.processes)
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"], configs


def _params(overrides: list[str]) -> list[str]:
    """What an experiment sweeps over by itself, in ``hydra.sweeper.params``."""
    single = [text for text in overrides if text.startswith("experiment=") and "," not in text]
    config = hydra.compose("config", overrides=single, return_hydra_config=True)
    return [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
