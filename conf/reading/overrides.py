"""Parsing and composing `setting=value` and `group=option` with Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

import conf
from conf.reading.as_typed import as_typed
from conf.reading.explain import SETTINGS, check_known, no_option
from conf.reading.options import search_path
from conf.schema import Config

ConfigStore.instance().store("base_config", node=Config)


def initialise() -> AbstractContextManager[None]:
    """Return a context in which Hydra finds the YAML files of the installed package ``conf``."""
    return initialize_config_module(conf.__name__, job_name="caat", version_base="1.3")


def hydra_config(overrides: Sequence[str], **how: Any) -> DictConfig:
    """Compose ``overrides`` with Hydra, including the options of ``--config-dir``."""
    # Hydra refuses its own default, which means no experiment.
    given = [text for text in overrides if text != "experiment=null"]
    return hydra_compose("config", overrides=[*search_path(), *given], **how)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse ``overrides`` with Hydra. Call it only within :func:`initialise`.

    Raise ``ValueError`` for bad syntax, an unknown setting or an unknown option.
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
                f"{text} cannot be read as key=value: quote a value that contains spaces, brackets or '=', "
                "once for caat and once for the shell: 'key=\"value\"'"
            ) from error
        check_known(override)
        parsed.append(override)
    return parsed
