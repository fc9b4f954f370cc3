"""Every combination of the values that a sweep gives, in the order of Hydra's own sweeper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException

from conf.checks import first_line
from conf.reading.as_typed import quoted


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each run, each ``key=value``. The last key varies fastest.

    The last override of a key wins. Raises ``ValueError`` for one whose values cannot be listed.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        written = override.get_key_element()  # such as ++seed
        values[override.key_or_group] = [f"{written}={value}" for value in _values(override)]
    return [list(run) for run in product(*values.values())]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line).partition("=")[2]]
    try:
        return [str(value) for value in override.sweep_iterator(transformer=_written)]
    # Intervals have no list of values. Hydra leaves a range whose step is 0 to Python.
    except (HydraException, ValueError) as error:
        raise ValueError(
            f"{override.input_line} has no list of values ({first_line(error)}): list the values, as in "
            "sync.ratio=1,0.5"
        ) from error


def _written(value: Any) -> str:
    """Return a value as a user writes it. Hydra escapes ":" and " " in texts, which are read again."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    text = Transformer.str(value)
    return quoted(value) if isinstance(value, str) and text != value else text
