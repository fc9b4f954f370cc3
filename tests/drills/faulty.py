"""`launch.pretrain` in a process that a drill breaks at a chosen step. The product has no hooks for this."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

# Set by the drill: {"kind": ..., "rank": ..., "step": ...}.
FAULT = "CAAT_DRILL"


def install(fault: dict[str, Any]) -> None:
    """Break this process as told, if it is the rank that is meant."""
    if int(os.environ.get("RANK", "0")) != fault["rank"]:
        return
    kinds = {
        "raise": _raise,
        "hang": _hang,
        "gradient": _gradient,
        "weight": _weight,
        "batch": _batch,
        "round": _round,
    }
    {**kinds, "drift": _drift}[fault["kind"]](fault["step"])


def install_if_told() -> None:
    if FAULT in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        install(json.loads(os.environ[FAULT]))


def _at(step: int, owner: Any, method: str, action: Callable[..., None]) -> None:
    """Call ``action(self)`` before the ``step``-th call of ``owner.method``."""
    original, calls = getattr(owner, method), [0]

    def wrapped(self, *arguments, **named):
        calls[0] += 1
        if calls[0] == step:
            action(self)
        return original(self, *arguments, **named)

    setattr(owner, method, wrapped)


def _raise(step: int) -> None:
    from caat.data.loader import Loader

    def fail(loader: Loader) -> None:
        raise RuntimeError("the drill's own failure")

    _at(step, Loader, "step", fail)


def _hang(step: int) -> None:
    from caat.data.loader import Loader

    _at(step, Loader, "step", lambda loader: time.sleep(10**6))


def _round(number: int) -> None:
    """This process is killed in a round, when the islands have met and before they exchange anything."""
    from caat.parallel.meeting import Meeting

    _at(number, Meeting, "connect", lambda meeting: os.kill(os.getpid(), signal.SIGKILL))


def _gradient(step: int) -> None:
    """One element of a gradient becomes nan, once."""
    from caat.training.engine import Engine

    def spoil(engine: Engine) -> None:
        def hook(gradient):
            handle.remove()
            gradient = gradient.clone()
            gradient.view(-1)[0] = float("nan")
            return gradient

        handle = engine.model.get_parameter("head.weight").register_hook(hook)

    _at(step, Engine, "step", spoil)


def _weight(step: int) -> None:
    """One weight becomes nan, and stays so."""
    from caat.training.engine import Engine

    def spoil(engine: Engine) -> None:
        engine.model.get_parameter("head.weight").detach().view(-1)[0] = float("nan")

    _at(step, Engine, "step", spoil)


def _batch(step: int) -> None:
    """What the embedding makes of one batch is nan."""
    from caat.training.engine import Engine

    def spoil(engine: Engine) -> None:
        def hook(module, inputs, output):
            handle.remove()
            return output * float("nan")

        handle = engine.model.get_submodule("embedding").register_forward_hook(hook)

    _at(step, Engine, "step", spoil)


def _drift(step: int) -> None:
    """One bit of a norm weight's master copy flips on this rank alone."""
    import torch

    from caat.training.engine import Engine

    def spoil(engine: Engine) -> None:
        weight = engine.live.fragments()["blocks.0.mlp_norm.weight", "weight"].numbers
        weight.view(torch.int32)[3] ^= 1

    _at(step, Engine, "step", spoil)


if __name__ == "__main__":
    install_if_told()
    from launch.pretrain import main

    sys.exit(main())
