"""The configuration of a run as a file, written once and read back by anybody."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.checks import first_line
from conf.reading.build import build, literal
from conf.reading.yaml_values import read_file
from conf.schema import Config


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` as YAML to the new file ``path``; raises ``FileExistsError`` if it is there."""
    with path.open("x", encoding="utf-8") as file:
        file.write(config_text(config))


def config_text(config: Config) -> str:
    """``config`` as YAML, every setting in it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_config(path: Path) -> Config:
    """The configuration in ``path``, which may be a stranger's: nothing in it is executed, and no ``${...}``
    is resolved.

    Raises ``ValueError`` if it is missing, not YAML, or holds what the schema does not know or allow.
    """
    values = read_file(path)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), literal(values))
    except (OmegaConfBaseException, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a configuration of this version of caat ({first_line(error)}): "
            "give a run folder that caat made"
        ) from error
    try:
        return build(config, Config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
