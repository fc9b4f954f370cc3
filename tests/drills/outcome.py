"""How a drill ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Outcome:
    """How the broken run ended, and what a resumed one made of it."""

    ended: str
    status: int
    # Steps that were trained and had to be trained again.
    steps_lost: int
    # Problems found; a drill is survived if there are none.
    problems: list[str]


def how_it_ended(output: str, status: int) -> str:
    """The message that a user sees, in short."""
    lines = [line for line in output.splitlines() if line.startswith("caat:")]
    errors = [line for line in lines if line.startswith("caat: error: ")]
    first = (
        (errors or lines)[0].removeprefix("caat: ").removeprefix("error: ")
        if lines
        else "killed with its launcher"
    )
    return f"status {status}: {first[:90]}"
