"""The state of torch's random generators, as text for a checkpoint."""

from __future__ import annotations

import torch


def random_state() -> dict[str, str]:
    """Return the states of torch's generators on the CPU and, if it is in use, on this process's GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: state.numpy().tobytes().hex() for device, state in states.items()}


def set_random_state(states: dict[str, str]) -> None:
    """Restore the states from :func:`random_state`; a device that this process lacks is skipped."""
    for device, text in states.items():
        state = torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
        if device == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state)
