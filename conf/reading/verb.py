"""Reading the settings of a verb from `setting=value` into its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from conf.reading.build import build, put
from conf.reading.explain import check_option, no_option, unknown
from conf.reading.options import CONF, GROUPS
from conf.reading.overrides import hydra_config, initialise
from conf.reading.settings import Setting, field_types, print_settings, settings_of
from conf.schema import Config

T = TypeVar("T")


def load_verb(schema: type[T], argv: Sequence[str]) -> T:
    """Return ``schema`` with the ``setting=value`` of ``argv``. ``--help`` prints the settings and exits.

    The value of a text setting is used unchanged. A nested schema that has a group in ``conf`` starts from
    the group's default option and accepts the others: ``data=fineweb_edu``.

    Raise ``ValueError`` for an unknown or missing setting, a wrong type, or a value out of range.
    """
    if "--help" in argv or "-h" in argv:
        print_settings(schema, defaults(schema).values(), {name: GROUPS[name] for name in _groups(schema)})
        raise SystemExit(0)
    known, nested = settings_of(schema), _groups(schema)
    options, values = _default_options(schema), dict[str, tuple[Any, str]]()
    for text in argv:
        key, equals, value = text.partition("=")
        if not equals or text.startswith("-"):
            no_option(argv, known)
        if key in nested:
            options[key] = check_option(key, value, text)
        elif key in known:
            values[key] = known[key].parse(value), text
        else:
            unknown(key, text, [*known, *nested])
    config = _with_groups(schema, options)
    for key, (value, text) in values.items():
        put(config, known[key], value, text)
    for key in sorted(
        setting.name for setting in known.values() if OmegaConf.is_missing(config, setting.field)
    ):
        raise ValueError(f"{key} is required: give {key}=... (see --help)")
    return build(config, schema, argv)


def defaults(schema: type) -> dict[str, Setting]:
    """Return the settings of ``schema`` by name, with the defaults of the groups' default options."""
    if schema is Config:
        with initialise():
            config = hydra_config([])
    else:
        config = _with_groups(schema, _default_options(schema))
    values = OmegaConf.to_container(config, resolve=True)
    known = settings_of(schema)
    return {name: replace(setting, default=_at(values, setting.field)) for name, setting in known.items()}


def _groups(schema: type) -> list[str]:
    """Return the groups in ``conf`` that the verb shares with `caat pretrain`."""
    ours = field_types(Config)
    return [name for name, kind in field_types(schema).items() if name in GROUPS and kind is ours.get(name)]


def _with_groups(schema: type, options: Mapping[str, str]) -> DictConfig:
    """Return the defaults of ``schema``, overridden by the options of its groups."""
    config = OmegaConf.structured(schema)
    for group in _groups(schema):
        option = DictConfig(OmegaConf.load(CONF / group / f"{options[group]}.yaml"))
        # A global option (a model also sets the learning rate) has this group under its name.
        OmegaConf.update(config, group, option.get(group, option))
    return config


def _default_options(schema: type) -> dict[str, str]:
    """Return the default option of every group: that of ``schema.OPTIONS``, else that of config.yaml."""
    defaults: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    entries = (entry for entry in defaults["defaults"] if isinstance(entry, dict))
    return {key: option for entry in entries for key, option in entry.items()} | getattr(
        schema, "OPTIONS", {}
    )


def _at(values: Any, place: str) -> Any:
    for name in place.split("."):
        values = values[name]
    return values
