"""Writing and reading config.yaml, the configuration of a run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.checks import first_line
from conf.reading.build import build, literal
from conf.reading.yaml_values import read_file
from conf.schema import Config


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` as YAML to the new file ``path``, whole or not at all.

    Raise ``FileExistsError`` if it exists, and ``OSError`` if it cannot be written.
    """
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(config_text(config))
            file.flush()
        except OSError:
            # Half of the settings would be read back as all of them.
            path.unlink()
            raise


def config_text(config: Config) -> str:
    """Return ``config`` as YAML with all settings."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_config(path: Path) -> Config:
    """Return the configuration in ``path``.

    The file may be untrusted: nothing in it is executed, and ``${...}`` is not resolved. Raise ``ValueError``
    if it is missing, not YAML, or has a setting or value that the schema does not allow.
    """
    values = read_file(path)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), literal(values))
    except (OmegaConfBaseException, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a configuration of this version of caat ({first_line(error)}): "
            "give a run folder that caat created"
        ) from error
    try:
        return build(config, Config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
