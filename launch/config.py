"""From what the user typed to a checked, typed configuration, and to a file and back.

`caat pretrain` composes the Hydra groups of ``conf``; the smaller verbs merge ``setting=value`` into a
schema of their own. Every mistake is a ``ValueError`` of one line: what was given, the rule, the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.checks import check_values, first_line, require
from conf.schema import Config
from launch.as_typed import as_typed
from launch.explain import (
    SETTINGS,
    check_known,
    check_option,
    explain,
    is_hydras,
    no_option,
    unknown,
)
from launch.from_file import FromFile, read_settings, read_yaml, set_by, settings_file, take_file
from launch.initial import adopt
from launch.options import CONF, GROUPS, search_path
from launch.settings import Setting, field_types, print_settings, settings_of, typed
from launch.warmup import shorten_warmup

T = TypeVar("T")

ConfigStore.instance().store("base_config", node=Config)


def initialise() -> AbstractContextManager[None]:
    """Hydra, looking for its YAML in the package ``conf``, wherever that is installed."""
    return initialize_config_module("conf", job_name="caat", version_base="1.3")


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that ``overrides`` (``sync.ratio=0.5``, ``model=130m``, ...) describe.

    What they leave open is as in the file of ``config=FILE``, or in the run that ``resume=auto`` continues. A
    warm-up that is not among them fits the steps. Raises ``ValueError`` for an unknown setting or option,
    one of Hydra's own, a wrong type, bad syntax, or a value out of range.
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
        path = settings_file(given, parsed)
        found = read_settings(path) if path else FromFile()
        keys = {override.key_or_group for override in parsed}
        options = [f"{group}={option}" for group, option in found.options.items() if group not in keys]
        try:
            config = hydra_config([*options, *_replacing(parsed)])
        except (HydraException, OmegaConfBaseException) as error:
            explain(error, overrides)
    _take_over(config, found, set_by(parsed))
    adopt(config, keys | set(found.options) | set(found.settings))
    built = build(config, Config, overrides)
    own = keys if "train.steps" in keys else keys | set(found.settings)
    if "optim.warmup_steps" not in own:
        shorten_warmup(built)
    return built


def hydra_config(overrides: Sequence[str], **how: Any) -> DictConfig:
    """What Hydra composes, with the options of the user's own folder if one is given."""
    return hydra_compose("config", overrides=[*search_path(), *overrides], **how)


def _take_over(config: DictConfig, found: FromFile, given: Collection[str]) -> None:
    """Set what is ``found`` in a file and not ``given`` on the command line."""
    for name, value in found.settings.items():
        if name in given:
            continue
        try:
            OmegaConf.update(config, name, _as_it_stands(value), merge=False)
        except OmegaConfBaseException as error:
            raise ValueError(f"{found.path}: {name}={typed(value)} is not {SETTINGS[name].rule}") from error
    # The file may be another's, and so the account that it names.
    require(
        found.path is None or config.tracker.wandb != "online" or "tracker.wandb" in given,
        f"{found.path} sends its metrics to Weights & Biases: give tracker=wandb to do so, or tracker=none",
    )


def _replacing(parsed: Sequence[Override]) -> list[str]:
    """The overrides, but a schedule of the ratio takes the place of an experiment's: Hydra mixes them."""
    found = []
    for override in parsed:
        if override.key_or_group == "sync.ratio" and isinstance(override.value(), dict):
            found.append("sync.ratio=0")
        found.append(str(override.input_line))
    return found


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Hydra's reading of ``overrides``, each of a known setting or option. Within `initialise` only.

    Raises ``ValueError`` for bad syntax, an unknown setting or option.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = []
    for text in overrides:
        if text.startswith("-") or ("=" not in text and not text.startswith("~")):
            no_option(overrides, SETTINGS)
        try:
            override = parser.parse_overrides([as_typed(text, SETTINGS, parser)])[0]
        except HydraException as error:
            raise ValueError(
                f"{text} cannot be read as key=value: quote a value that has spaces, brackets or '=' in it, "
                "once for caat and once for the shell: 'key=\"value\"'"
            ) from error
        check_known(override)
        parsed.append(override)
    return parsed


def load_verb(schema: type[T], argv: Sequence[str]) -> T:
    """``schema`` with the ``setting=value`` of ``argv``; ``--help`` prints the settings and exits.

    A setting of type text takes what follows the ``=`` as it stands. A nested schema that has a group in
    ``conf`` starts from that group's default and takes its options: ``data=fineweb_edu``.

    Raises ``ValueError`` for an unknown or missing setting, a wrong type, or a value out of range.
    """
    if "--help" in argv or "-h" in argv:
        print_settings(schema, defaults(schema).values(), {name: GROUPS[name] for name in _groups(schema)})
        raise SystemExit(0)
    known, nested = settings_of(schema), _groups(schema)
    options, values = _default_options(schema), {}
    for text in argv:
        key, equals, value = text.partition("=")
        if not equals or text.startswith("-"):
            no_option(argv, known)
        if key in nested:
            options[key] = check_option(key, value, text)
        elif key in known:
            values[key] = known[key].parse(value)
        else:
            unknown(key, text, [*known, *nested])
    try:
        config = _with_groups(schema, options)
        for key, value in values.items():
            OmegaConf.update(config, known[key].field, _as_it_stands(value))
    except OmegaConfBaseException as error:
        explain(error, argv, known)
    for key in sorted(
        setting.name for setting in known.values() if OmegaConf.is_missing(config, setting.field)
    ):
        raise ValueError(f"{key} is required: give {key}=... (see --help)")
    return build(config, schema, argv)


def _as_it_stands(value: Any) -> Any:
    """Text, also in lists and objects, in which OmegaConf is to see no ``${...}`` of its own: the prompt of a
    shell script, say."""
    if isinstance(value, dict):
        return {key: _as_it_stands(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_it_stands(each) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", value)


def defaults(schema: type) -> dict[str, Setting]:
    """Every setting of ``schema`` by name, with the default that the groups' default options give it."""
    if schema is Config:
        with initialise():
            config = hydra_config([])
    else:
        config = _with_groups(schema, _default_options(schema))
    values = OmegaConf.to_container(config, resolve=True)
    known = settings_of(schema)
    return {name: replace(setting, default=_at(values, setting.field)) for name, setting in known.items()}


def _groups(schema: type) -> list[str]:
    """The groups in ``conf`` that a verb takes as `caat pretrain` does."""
    ours = field_types(Config)
    return [name for name, kind in field_types(schema).items() if name in GROUPS and kind is ours.get(name)]


def _with_groups(schema: type, options: Mapping[str, str]) -> DictConfig:
    """The defaults of ``schema``, then what the options of its groups set."""
    config = OmegaConf.structured(schema)
    for group in _groups(schema):
        option = DictConfig(OmegaConf.load(CONF / group / f"{options[group]}.yaml"))
        # An option of the whole configuration (a model brings its schedule) has this group by name.
        OmegaConf.update(config, group, option.get(group, option))
    return config


def _at(values: Any, place: str) -> Any:
    for name in place.split("."):
        values = values[name]
    return values


def build(config: Any, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """The objects of ``config``; building them checks the ranges, by ``ValueError``."""
    try:
        check_values(OmegaConf.to_container(config, resolve=True))
        built = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        explain(error, overrides)
    assert isinstance(built, schema)
    return built


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` as YAML to the new file ``path``; raises ``FileExistsError`` if it is there."""
    with path.open("x", encoding="utf-8") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.structured(config)))


def read_config(path: Path) -> Config:
    """The configuration in ``path``, which may be a stranger's: nothing in it is executed, and no ``${...}``
    is resolved.

    Raises ``ValueError`` if it is missing, not YAML, or holds what the schema does not know or allow.
    """
    values = read_yaml(path)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), _as_it_stands(values))
    except (OmegaConfBaseException, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a configuration of this version of caat ({first_line(error)}): "
            "give a run folder that caat made"
        ) from error
    try:
        return build(config, Config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _default_options(schema: type) -> dict[str, str]:
    """The option of every group that config.yaml starts from, unless ``schema`` has its own."""
    defaults: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    entries = (entry for entry in defaults["defaults"] if isinstance(entry, dict))
    return {key: option for entry in entries for key, option in entry.items()} | getattr(
        schema, "OPTIONS", {}
    )
