"""Checks of settings. They raise `ValueError` with the value, the rule and the remedy."""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path
from typing import Any

# Settings that name a file or folder, in any schema.
PATHS = {"path", "dir", "folder", "checkpoint", "resume", "initialize", "tokenizer", "tokens", "prompts"}
PATHS |= {"from", "to", "out", "schedule", "topology", "chat_template"}
SURROGATE = re.compile("[\ud800-\udfff]")
# Bounds of a number's magnitude: products of several stay finite, and no quantity of a run is beyond.
SMALLEST, LARGEST = 1e-30, 1e30
# Long values are cut in messages.
SHOWN = 60


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition`` holds. For mistakes of the user, not ours."""
    if not condition:
        raise ValueError(message)


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` unless all random number generators accept ``seed``."""
    require(0 <= seed < 2**32, f"seed={seed} is outside 0 to {2**32 - 1}")


def require_positive(**settings: float) -> None:
    """Raise ``ValueError`` naming the first of ``settings`` that is not above 0."""
    for name, value in settings.items():
        require(value > 0, f"{name.replace('__', '.')}={value} must be above 0")


def check_values(values: Any, name: str = "") -> None:
    """Raise ``ValueError`` for the first of the nested ``values`` that cannot be used.

    These are numbers that are not finite, beyond 1e30 or 64 bits or too close to 0, text that is not UTF-8,
    and invalid paths. ``name`` is the dotted name of the setting that holds ``values``.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            check_values(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list):
        for value in values:
            check_values(value, name)
    elif isinstance(values, float):
        check_magnitude(values, name, str(values))
    elif isinstance(values, int):
        require(
            abs(values) < 2**63,
            f"{name}={str(values)[:20]}... exceeds 64 bits: give a smaller number",
        )
    elif isinstance(values, str):
        shown = ascii(values)[1:-1][:SHOWN]
        require(values.isascii() or not SURROGATE.search(values), f"{name}={shown} is not UTF-8 text")
        if name.rpartition(".")[2].removesuffix("_") in PATHS:
            check_path(values, name)


def check_magnitude(value: float, name: str, shown: str) -> None:
    """Raise ``ValueError`` unless ``value`` can be computed with. It is ``shown`` in the setting ``name``."""
    require(isfinite(value), f"{name}={_cut(shown)} is not finite: give another number")
    beyond = "large" if abs(value) > 1 else "close to 0"
    require(
        value == 0 or SMALLEST <= abs(value) <= LARGEST,
        f"{name}={_cut(shown)} is too {beyond}: give a magnitude from {SMALLEST:g} to {LARGEST:g}",
    )


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_path(value: str, name: str) -> None:
    """Raise ``ValueError`` if ``value`` is not a valid path. ``name`` is the setting."""
    require(value != "", f"{name} is empty: give a path, or leave {name} out")
    shown = _cut(value)
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"{name}={shown}: there is no such user: give the path without ~") from None
    require("\0" not in value, f"{name}={shown} contains a null character, which is not allowed in a path")
    longest = max((len(part.encode()) for part in path.parts), default=0)
    require(
        longest <= 255 and len(str(path).encode()) < 4096,
        f"{name}={shown} is too long: its longest name has {longest} bytes (at most 255), the path "
        f"{len(str(path).encode())} (at most 4095)",
    )


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    require(value in choices, f"{name}={value} is not known: choose one of {', '.join(choices)}")


def named_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(". ")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
