"""How a setting is refused: `ValueError` with the value, the rule and the remedy."""

from __future__ import annotations


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


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    require(value in choices, f"{name}={value} is not known: choose one of {', '.join(choices)}")
