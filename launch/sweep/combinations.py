"""Every combination of the values that a sweep gives, in the order of Hydra's own sweeper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from conf.checks import first_line


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each run, each ``key=value``. The last key varies fastest.

    The last override of a key wins. Raises ``ValueError`` for one whose values cannot be listed.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        values[key] = [f"{key}={value}" for value in _values(override)]
    return [list(run) for run in product(*values.values())]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    try:
        return list(override.sweep_string_iterator())
    # Intervals have no list of values. Hydra leaves a range whose step is 0 to Python.
    except (HydraException, ValueError) as error:
        raise ValueError(
            f"{override.input_line} has no list of values ({first_line(error)}): list the values, as in "
            "sync.ratio=1,0.5"
        ) from error
