"""Error messages for wrong overrides: the value, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from hydra.core.override_parser.types import Override
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException, ValidationError

from conf.checks import first_line
from conf.reading.options import GROUPS
from conf.reading.settings import settings_of
from conf.schema import Config

SETTINGS = settings_of(Config)


def is_hydras(text: str) -> bool:
    """Return whether an override is one of Hydra's own settings, which are used for sweeps."""
    return text.lstrip("+~").split("=")[0].startswith(("hydra.", "hydra/"))


def check_known(override: Override) -> None:
    """Raise ``ValueError`` unless the setting or the group option of ``override`` exists."""
    key, text = override.key_or_group, str(override.input_line)
    if is_hydras(text):
        return
    if override.is_delete():
        raise ValueError(f"{text} would remove a setting: set another value instead, {key}=...")
    if key in GROUPS and not isinstance(override.value(), dict):
        sweep = override.is_sweep_override()
        value = override.value()
        options = override.sweep_string_iterator() if sweep else value if isinstance(value, list) else [value]
        for option in options:
            check_option(key, option, text)
    elif key not in SETTINGS and key not in GROUPS:
        unknown(key, text, [*SETTINGS, *GROUPS])


def check_option(group: str, option: Any, text: str) -> str:
    """Return ``option`` as a name. Raise ``ValueError`` unless it is an option of ``group``."""
    name = "null" if option is None else str(option)
    if name not in GROUPS[group] and not (group == "experiment" and option is None):
        inside = next((key for key in SETTINGS if key.startswith(f"{group}.")), None)
        raise ValueError(
            f"{text}: there is no {group} {name}, choose one of {', '.join(GROUPS[group])}"
            + (f" (a single setting is given as {inside}=...)" if inside else "")
        )
    return name


def unknown(key: str, text: str, known: Iterable[str]) -> NoReturn:
    """Raise ``ValueError`` for the unknown setting ``key``, with the closest of the ``known`` ones."""
    close = _closest(key, list(known))
    hint = f"did you mean {close}?" if close else "see --help for the settings"
    raise ValueError(f"{text}: there is no setting {key}, {hint}")


def no_option(argv: Sequence[str], known: Iterable[str]) -> NoReturn:
    """Raise ``ValueError`` for the first word in ``argv`` that is not of the form setting=value."""
    wrong = [text for text in argv if text.startswith("-")] or [text for text in argv if "=" not in text]
    text = wrong[0]
    key, equals, value = text.lstrip("-").partition("=")
    name = _closest(key.replace("-", "_"), list(known))
    if not name:
        what = "an option" if text.startswith("-") else "of the form setting=value"
        raise ValueError(f"{text} is not {what}: give settings as key=value (see --help)")
    following = argv[argv.index(text) + 1 :][:1]
    if not equals and following and "=" not in following[0] and not following[0].startswith("--"):
        value = following[0]
        text = f"{text} {value}"
    raise ValueError(f"{text} is not how a setting is written: give {name}={value or '...'}")


def _closest(key: str, known: list[str]) -> str | None:
    """Return the known setting closest to ``key``; one with the same last part comes first."""
    if key in known:
        return key
    alike = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = get_close_matches(key, alike, n=1, cutoff=0) or get_close_matches(key, known, n=1)
    return close[0] if close else None


def explain(error: Exception, overrides: Sequence[str]) -> NoReturn:
    """Raise the ``error`` of Hydra or OmegaConf in ``overrides`` as a ``ValueError``."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    # An error in an element of a list is reported for the list.
    key = (getattr(cause, "full_key", None) or "").split("[")[0]
    given = next((text for text in reversed(overrides) if text.lstrip("+").startswith(f"{key}=")), None)
    if isinstance(cause, ValidationError | ConfigTypeError) and key in SETTINGS:
        raise ValueError(f"{given or f'{key}={cause.value}'} is not {SETTINGS[key].rule}") from error
    if isinstance(cause, ConfigKeyError) and key and key not in SETTINGS:
        unknown(key, key, SETTINGS)
    raise ValueError(f"{given or key or 'the configuration'}: {first_line(cause)}") from error
