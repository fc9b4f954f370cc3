"""Builds the objects of a schema from composed values. Their constructors check the ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.checks import check_values
from conf.reading.explain import explain
from conf.reading.settings import Setting

T = TypeVar("T")


def build(config: Any, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Return ``config`` as an object of ``schema``. Raise ``ValueError`` for a wrong value."""
    try:
        check_values(OmegaConf.to_container(config, resolve=True))
        built = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        explain(error, overrides)
    assert isinstance(built, schema)
    return built


def put(config: DictConfig, setting: Setting, value: Any, given: str) -> None:
    """Set ``setting`` in ``config``. Raise ``ValueError`` naming ``given`` for a value of the wrong type."""
    try:
        OmegaConf.update(config, setting.field, literal(value), merge=False)
    except OmegaConfBaseException as error:
        raise ValueError(f"{given} is not {setting.rule}") from error


def literal(value: Any) -> Any:
    """Escape ``${...}`` in text, also within lists and dicts, so that OmegaConf does not interpolate it."""
    if isinstance(value, dict):
        return {key: literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [literal(each) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", value)
