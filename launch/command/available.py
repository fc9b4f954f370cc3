"""What is installed on this machine beside what caat needs, and who is logged in."""

from __future__ import annotations

from importlib.util import find_spec


def installed(module: str) -> bool:
    """Whether the top-level ``module`` can be imported; it is not."""
    return find_spec(module) is not None


def wandb_login() -> bool:
    """Whether wandb knows of an account on this machine. Asks no server."""
    import wandb

    return wandb.login(prompt=False, verify=False)
