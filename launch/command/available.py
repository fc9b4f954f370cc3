"""Optional packages on this machine, and the Weights & Biases login."""

from __future__ import annotations

from importlib.util import find_spec


def installed(module: str) -> bool:
    """Return whether the top-level ``module`` can be imported, without importing it."""
    return find_spec(module) is not None


def wandb_login() -> bool:
    """Return whether wandb has an account on this machine. Does not contact a server."""
    import wandb

    return wandb.login(prompt=False, verify=False)
