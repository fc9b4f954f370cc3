"""Settings of the optimizer and its learning-rate schedule: `optim.*`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from conf.checks import require, require_choice, require_positive
from conf.field import default_of, setting

OPTIMIZERS = ("adamw", "lamb", "sgd")
# Settings that apply only to some optimizers, by name.
ONLY = {"betas": ("adamw", "lamb"), "eps": ("adamw", "lamb"), "momentum": ("sgd",)}


@dataclass
class OptimConfig:
    """Weight decay applies to all matrices, including embedding and head, but not to norm weights."""

    name: str = setting("adamw", "Optimizer: adamw, lamb or sgd.")
    lr: float = setting(1e-3, "Peak learning rate, reached at the end of the warm-up.")
    min_lr: float = setting(1e-4, "Learning rate at the end of the decay.")
    betas: list[float] = setting(
        [0.9, 0.95],
        "AdamW and LAMB: decay rates of the running means of the gradient and of its square.",
    )
    eps: float = setting(
        1e-8, "AdamW and LAMB: constant added to the square root of the mean squared gradient."
    )
    momentum: float = setting(0.9, "SGD: momentum. 0: plain SGD, which keeps no state.")
    weight_decay: float = setting(
        0.1,
        "Fraction of a weight, times the learning rate, that each step subtracts. SGD adds it to the "
        "gradient instead, so the momentum includes it.",
    )
    clip: float = setting(1.0, "Maximum global norm of the gradient. 0 turns clipping off.")
    schedule: str = setting(
        "cosine",
        "Learning-rate schedule after the linear warm-up: cosine or linear (decay to min_lr), "
        "constant, or wsd (warm-up, stable, decay: constant until the last `decay_steps`, then linear "
        "to min_lr).",
    )
    warmup_steps: int = setting(20, "Number of steps over which the learning rate rises from 0.")
    decay_steps: int | None = setting(None, "Number of decay steps of wsd. Default: a tenth of train.steps.")

    def __post_init__(self) -> None:
        require_choice("optim.name", self.name, OPTIMIZERS)
        self._check_only()
        require_positive(optim__lr=self.lr, optim__eps=self.eps)
        require(
            0.0 <= self.min_lr <= self.lr, f"optim.min_lr={self.min_lr} is outside [0, optim.lr={self.lr}]"
        )
        require(
            len(self.betas) == 2 and all(0.0 <= b < 1.0 for b in self.betas),
            f"optim.betas={list(self.betas)} must be two numbers in [0, 1)",
        )
        require(0.0 <= self.momentum < 1.0, f"optim.momentum={self.momentum} is outside [0, 1)")
        for name in ("weight_decay", "clip", "warmup_steps"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name}={value} must not be negative")
        require_choice("optim.schedule", self.schedule, ("cosine", "linear", "constant", "wsd"))
        if self.decay_steps is not None:
            require_positive(optim__decay_steps=self.decay_steps)
            require(
                self.schedule == "wsd",
                f"optim.decay_steps={self.decay_steps} has no effect with optim.schedule={self.schedule}: "
                "leave it out, or set optim.schedule=wsd",
            )

    def _check_only(self) -> None:
        """Raise ``ValueError`` if a setting that this optimizer does not have is not at its default."""
        defaults = {field.name: default_of(field) for field in fields(self)}
        for name, optimizers in ONLY.items():
            value, default = getattr(self, name), defaults[name]
            require(
                self.name in optimizers or value == default,
                f"optim.{name}={value} has no effect with optim.name={self.name}: give its default, "
                f"optim.{name}={default}, or optim.name={' or '.join(optimizers)}",
            )

    def decay(self, steps: int) -> int:
        """Return the number of decay steps of wsd in a run of ``steps`` steps; 0 for other schedules."""
        return (self.decay_steps or max(1, steps // 10)) if self.schedule == "wsd" else 0
