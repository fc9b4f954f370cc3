"""How a setting is refused: `ValueError` with the value, the rule and the remedy."""

from __future__ import annotations

from sys import float_info
from typing import Any


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition`` holds: the user's mistake, not ours."""
    if not condition:
        raise ValueError(message)


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` unless every generator of random numbers takes it."""
    require(0 <= seed < 2**32, f"seed={seed} is outside 0 to {2**32 - 1}")


def require_positive(**settings: float) -> None:
    """Raise ``ValueError`` naming the first of ``settings`` that is not above zero."""
    for name, value in settings.items():
        require(value > 0, f"{name.replace('__', '.')}={value} must be above 0")


def check_numbers(values: Any, name: str = "") -> None:
    """Raise ``ValueError`` for the first number in nested ``values`` that arithmetic cannot go on with.

    ``name`` is where ``values`` stand, in the user's terms.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            check_numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list):
        for value in values:
            check_numbers(value, name)
    elif isinstance(values, float):
        normal = values == 0 or float_info.min <= abs(values) <= float_info.max
        require(normal, f"{name}={values} is no number that can be computed with: give a finite one")
    elif isinstance(values, int):
        require(abs(values) < 2**63, f"{name}={str(values)[:20]}... is beyond 64 bits: give a smaller one")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    require(value in choices, f"{name}={value} is not known: choose one of {', '.join(choices)}")
