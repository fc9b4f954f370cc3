"""Turns the overrides of a sweep into its runs, each with a folder and a checked configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from caat.runs.status import read_status
from conf.checks import check_path, first_line, require
from conf.deployment import DEPLOYMENT
from conf.reading.explain import is_hydras
from conf.reading.from_file import take_file
from conf.reading.overrides import hydra_config, initialise, parse_overrides
from launch.run.compose import compose
from launch.run.folder import in_a_name
from launch.run.validate import check_device, validate
from launch.sweep.combinations import combinations
from launch.sweep.run import Run
from launch.sweep.slurm import SlurmOptions

# Prefixes of settings that are not part of a sweep's name: they do not change its runs.
NOT_NAMED = (*DEPLOYMENT, "hydra")
QUOTES = "\"'"
# Bytes of a run's folder name; a file system takes 255.
LONGEST = 200


@dataclass(frozen=True)
class Sweep:
    """All runs and their common folder; ``slurm`` is set if Slurm trains them."""

    folder: Path
    runs: list[Run]
    slurm: SlurmOptions | None


def plan_sweep(overrides: Sequence[str]) -> Sweep:
    """Return the sweep that ``overrides`` describe. Raises ``ValueError`` for a mistake in any run."""
    file, overrides = take_file(overrides)
    with initialise():
        parse_overrides(overrides)
        parsed = parse_overrides([*swept_by_experiment(overrides), *overrides])
        # The last override of a key wins.
        last = {override.key_or_group: override for override in parsed}
        fixed = [override for override in last.values() if not override.is_sweep_override()]
        varying = {key for key, override in last.items() if override.is_sweep_override()}
        given = combinations(parsed)
        _check(last, varying, len(given))
    names = [_name(combination, varying) for combination in given]
    require(len(set(names)) == len(names), "a value is given twice, or two values give the same folder name")
    # Mistakes in the settings of a run are found here.
    configs = [
        compose([*file, *(text for text in combination if text != "resume=auto" and not is_hydras(text))])
        for combination in given
    ]
    for number, config in enumerate(configs):
        require(
            config not in configs[:number],
            f"{names[number]} and {names[configs.index(config)]} are the same run: leave one out",
        )
    with initialise():
        try:
            shared = hydra_config([str(override.input_line) for override in fixed], return_hydra_config=True)
        except HydraException as error:
            raise ValueError(
                f"{first_line(error)}: hydra/launcher=slurm queues the runs; give its options with it, as "
                "hydra.launcher.nodes=2, or +hydra.launcher.NAME=VALUE for other options of sbatch"
            ) from error
    slurm = SlurmOptions.of(shared.hydra)
    model = "models" if varying & {"model", "model.name"} else configs[0].model.name
    folder = _folder(shared, [*file, *(str(override.input_line) for override in fixed)], model)
    runs = []
    for name, combination, config in zip(names, given, configs, strict=True):
        config.run.dir, config.resume = str(folder / name), "auto"
        if slurm is None:
            check_device(config)
        # Finished runs are left alone, even if their checkpoints are gone.
        if read_status(folder / name) != "finished":
            validate(config, config.launch.processes * (slurm.nodes if slurm else 1))
        runs.append(Run(name, [*file, *combination], config))
    return Sweep(folder, runs, slurm)


def _check(last: Mapping[str, Override], varying: set[str], runs: int) -> None:
    require(runs > 1, "-m trains once for each of several values: give some, such as sync.ratio=1,0.5")
    hydras = {key for key in (each.key_or_group for each in last.values()) if is_hydras(key)}
    for key in sorted(hydras):
        require(
            key in ("hydra/launcher", "hydra.sweep.dir") or key.startswith("hydra.launcher."),
            f"{key} has no effect on -m: give hydra.sweep.dir, hydra/launcher=slurm or its options "
            "hydra.launcher...",
        )
    require("run.dir" not in last, "run.dir is the folder of a single run: with -m, give hydra.sweep.dir=...")
    require(
        "resume" not in last or last["resume"].input_line == "resume=auto",
        "-m resumes each run from its own folder: leave resume out",
    )
    for key in varying:
        require(not key.startswith("hydra"), f"{key} applies to all runs of -m: give a single value")


def swept_by_experiment(overrides: Sequence[str]) -> list[str]:
    """Return an experiment's ``hydra.sweeper.params`` as overrides. Call within :func:`initialise`."""
    given = [text for text in overrides if text.startswith("experiment=")]
    override = parse_overrides(given[-1:])[0] if given else None
    if override is None or not override.is_sweep_override():
        return _params(given)
    for name in override.sweep_string_iterator():
        params = _params([f"experiment={name}"])
        require(
            not params,
            f"experiment={name} is a sweep of its own ({' '.join(params)}): give one -m for each experiment",
        )
    return []


def _params(experiment: Sequence[str]) -> list[str]:
    config = hydra_config(list(experiment), return_hydra_config=True)
    return [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]


def _folder(shared: DictConfig, fixed: Sequence[str], model: str) -> Path:
    """Return ``hydra.sweep.dir``, else a name from what all runs share, so that values can be added later."""
    if shared.hydra.sweep.dir:
        check_path(str(shared.hydra.sweep.dir), "hydra.sweep.dir")
        return Path(shared.hydra.sweep.dir).expanduser()
    named = sorted(text for text in fixed if not text.lstrip("+").startswith(NOT_NAMED))
    digest = sha256("\n".join(named).encode()).hexdigest()[:8]
    return Path("outputs", "sweeps", f"{in_a_name(model)}-{digest}")


def _name(combination: Sequence[str], varying: set[str]) -> str:
    """Return a name from what varies, such as ``seed-1_sync.ratio-0.5``, without "=", "," or "/"."""
    given = sorted(text.lstrip("+").partition("=")[::2] for text in combination)
    parts = [f"{key}-{value.strip(QUOTES)}" for key, value in given if key in varying]
    name = in_a_name("_".join(parts))
    if len(name.encode()) <= LONGEST:
        return name
    return f"{name[: LONGEST // 4]}-{sha256(name.encode()).hexdigest()[:8]}"
