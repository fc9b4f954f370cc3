"""Turns the command line of `caat pretrain` into a checked configuration.

Every mistake raises a one-line ``ValueError`` with the value, the rule and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from conf.checks import check_path, require
from conf.reading.build import build, put
from conf.reading.explain import SETTINGS, explain, is_hydras
from conf.reading.from_file import FromFile, set_by, settings_files, take_file
from conf.reading.overrides import hydra_config, initialise, parse_overrides
from conf.reading.settings import typed
from conf.schema import Config
from launch.run.initial import adopt, keep_tokenizer
from launch.run.resume import where_it_began
from launch.run.warmup import shorten_warmup


def compose(overrides: Sequence[str]) -> Config:
    """Return the configuration that ``overrides`` (``sync.ratio=0.5``, ``model=130m``, ...) describe.

    Other settings come from the file of ``config=FILE``, else from the run that ``resume=auto`` continues.
    A warm-up that is not set is shortened to fit the steps. Raises ``ValueError`` for an unknown setting or
    option, one of Hydra's own, a wrong type, bad syntax, or a value out of range.
    """
    given, overrides = take_file(overrides)
    with initialise():
        parsed = parse_overrides(overrides)
        for override in parsed:
            text = str(override.input_line)
            require(
                not is_hydras(text),
                f"{text} is for a sweep: give -m and several values, or leave it out"
                + (" (the folder of a run is run.dir=...)" if text.startswith("hydra.run.dir") else ""),
            )
            if override.is_sweep_override():
                raise ValueError(
                    f"{override.input_line} gives several values: caat pretrain -m trains once for each; "
                    "a list is written as key=[a,b]"
                )
        files = settings_files(given, parsed)
        keys = {override.key_or_group for override in parsed}
        groups = {group: option for found in files for group, option in found.options.items()}
        options = [f"{group}={option}" for group, option in groups.items() if group not in keys]
        try:
            config = hydra_config([*options, *_replacing(parsed)])
        except (HydraException, OmegaConfBaseException) as error:
            explain(error, overrides)
    typed_in, of_files = set_by(parsed), {name for found in files for name in found.settings}
    _take_over(config, files, typed_in)
    _refuse_foreign(config, files, typed_in)
    if len(files) > len(given) and "data.tokenizer" not in keys.union(*(found.sets for found in files[1:])):
        keep_tokenizer(config, files[0].path.parent)
    adopt(config, keys | set(groups) | of_files)
    with _naming_its_origin(files, typed_in):
        built = build(config, Config, overrides)
    if built.resume == "auto":
        # Also saved so: until the run has a checkpoint, its config.yaml says where it began.
        built.resume = where_it_began(built) or "auto"
    own = keys if "train.steps" in keys else keys | of_files
    if "optim.warmup_steps" not in own:
        shorten_warmup(built)
    return built


@contextmanager
def _naming_its_origin(files: Sequence[FromFile], given: Collection[str]) -> Iterator[None]:
    """Add to a ``ValueError`` which of the settings that it names the user did not give, but a file did."""
    try:
        yield
    except ValueError as error:
        # Words before a value, or with a dot within them.
        words = re.findall(r"[\w.]+(?==)|\w+\.[\w.]*\w", str(error))
        origins = {name: found.path for found in files for name in found.settings}
        taken = {name: path for name, path in origins.items() if name in words and name not in given}
        if not taken:
            raise
        unset = [f"{name}=null" for name in taken if type(None) in SETTINGS[name].types]
        how = f": {' '.join(unset)} leaves {'them' if len(unset) > 1 else 'it'} out" if unset else ""
        parts = []
        for path in dict.fromkeys(taken.values()):
            names = [name for name, its in taken.items() if its == path]
            parts.append(f"{', '.join(names)} {'come' if len(names) > 1 else 'comes'} from {path}")
        raise ValueError(f"{error} ({' and '.join(parts)}{how})") from None


def _take_over(config: DictConfig, files: Sequence[FromFile], given: Collection[str]) -> None:
    """Apply the settings in ``files``, of which later ones count more, that are not ``given``."""
    for number, found in enumerate(files):
        over = {*given, *(name for later in files[number + 1 :] for name in later.sets)}
        for name, value in found.settings.items():
            if name not in over:
                put(config, SETTINGS[name], value, f"{found.path}: {name}={typed(value)}")


def _refuse_foreign(config: DictConfig, files: Sequence[FromFile], given: Collection[str]) -> None:
    """Raise ``ValueError`` for what a file does to others or runs, unless it is ``given``.

    The file, with the account and the command that it names, may belong to someone else.
    """
    if not files:
        return

    def origin(name: str) -> Path:
        return next((found.path for found in reversed(files) if name in found.sets), files[-1].path)

    require(
        config.tracker.wandb != "online" or "tracker.wandb" in given,
        f"{origin('tracker.wandb')} sends its metrics to Weights & Biases: give tracker=wandb to do so, or "
        "tracker=none",
    )
    require(
        not config.checkpoint.after or "checkpoint.after" in given,
        f"{origin('checkpoint.after')} runs a command after each save, "
        f"{typed(list(config.checkpoint.after))}: give checkpoint.after=[...] on the command line to do so, "
        "or checkpoint.after=[]",
    )
    require(
        not config.islands.join or "islands.join" in given,
        f"{origin('islands.join')} exchanges weights with the islands at {config.islands.join}: give "
        "islands.join=... on the command line to do so, or islands.join=null",
    )
    for task in config.eval.tasks:
        check_path(str(task), "eval.tasks")
    folders = [task for task in config.eval.tasks if Path(task).expanduser().is_dir()]
    require(
        not folders or "eval.tasks" in given,
        f"{origin('eval.tasks')} has eval.tasks={typed(folders)}, and task files may run code of their own: "
        "give eval.tasks=[...] on the command line to do so",
    )


def _replacing(parsed: Sequence[Override]) -> list[str]:
    """Return the overrides, with a map such as a ratio schedule replacing another: Hydra would merge them."""
    found = []
    for override in parsed:
        if override.key_or_group in SETTINGS and isinstance(override.value(), dict):
            found.append(f"{override.key_or_group}=null")
        found.append(str(override.input_line))
    return found
