"""Settings of training on several islands: `islands.*`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite

from conf.checks import require, require_choice, require_positive
from conf.codec import parse_codec
from conf.field import default_of, setting

METHODS = ("auto", "none", "average", "diloco")
# The settings that have an effect only with outer steps, and only with an outer optimizer.
OUTER_OPTIMIZER = ("lr", "momentum")


@dataclass
class IslandsConfig:
    """Outer steps: islands train on their own and exchange only changes of their weights, now and then.

    `parallel.islands` sets their number. With one island there is nothing to exchange, but the outer
    optimizer still acts, which shows its effect alone.
    """

    method: str = setting(
        "auto",
        "What an exchange does: average (the mean of the islands' weights), diloco (the mean change is the "
        "gradient of an outer SGD with Nesterov momentum) or none. auto is diloco with several islands, and "
        "none with one.",
    )
    every: int = setting(30, "Number of steps between exchanges (H).")
    lr: float = setting(0.7, "Learning rate of the outer optimizer of diloco.")
    momentum: float = setting(0.9, "Nesterov momentum of the outer optimizer of diloco.")
    fragments: int = setting(
        1,
        "Number of parts of the model that are exchanged at different times, each every `every` steps. Parts "
        "are groups of consecutive blocks. More parts make smaller messages.",
    )
    delay: int = setting(
        0,
        "Number of steps that an exchange may take beside training. Its result is applied that many steps "
        "after it started. 0: training waits for it.",
    )
    alpha: float = setting(
        0.0,
        "Share of an island's own weights that it keeps when a result is applied; the rest is taken from the "
        "result. With `delay` and 0, an island loses what it learned during the delay; 0.5 keeps half.",
    )
    codec: str = setting("none", "Codec of the exchanged changes, any of data_sync.codec.")
    feedback: bool = setting(
        True, "Add what a biased codec lost of a change to the next one (error feedback)."
    )

    def __post_init__(self) -> None:
        require_choice("islands.method", self.method, METHODS)
        require_positive(islands__every=self.every, islands__fragments=self.fragments)
        require(
            isfinite(self.lr) and self.lr > 0, f"islands.lr={self.lr} must be a positive number (0.7, say)"
        )
        require(0.0 <= self.momentum < 1.0, f"islands.momentum={self.momentum} is outside [0, 1)")
        require(
            0 <= self.delay < self.every,
            f"islands.delay={self.delay} is outside [0, islands.every={self.every}): the result of an "
            "exchange is applied before the next one starts",
        )
        require(
            0.0 <= self.alpha < 1.0,
            f"islands.alpha={self.alpha} is outside [0, 1): it is the share of its own weights that an "
            "island keeps; with 1 the islands would never meet",
        )
        parse_codec(self.codec)
        for name in OUTER_OPTIMIZER if self.method == "average" else ():
            self._require_default(name, "islands.method=average has no outer optimizer")
        if self.method == "none":
            for each in fields(self):
                if each.name != "method":
                    self._require_default(each.name, "islands.method=none exchanges nothing")

    def _require_default(self, name: str, why: str) -> None:
        default = next(default_of(each) for each in fields(self) if each.name == name)
        require(
            getattr(self, name) == default,
            f"islands.{name}={getattr(self, name)} has no effect: {why}; leave it out",
        )

    def resolved(self, islands: int) -> str:
        """Return the method for this number of islands: none, average or diloco."""
        return ("diloco" if islands > 1 else "none") if self.method == "auto" else self.method

    def outer_optimizer(self, islands: int) -> tuple[float, float]:
        """Return learning rate and momentum of the outer optimizer; an average is a step of 1 without any."""
        return (1.0, 0.0) if self.resolved(islands) == "average" else (self.lr, self.momentum)

    def check(self, islands: int, layers: int) -> None:
        """Raise ``ValueError`` unless these fit ``islands`` islands and a model of ``layers`` blocks."""
        if self.resolved(islands) == "none":
            require(
                islands == 1,
                f"islands.method=none does not go with parallel.islands={islands}: the islands would train "
                "different models; set islands.method=diloco or average",
            )
            default = IslandsConfig(method=self.method)
            require(
                self == default,
                "islands.* has no effect with one island: set parallel.islands=2 or more, or islands.method "
                "to see the effect of the outer optimizer alone",
            )
        require(
            self.fragments <= layers,
            f"islands.fragments={self.fragments} is more than the {layers} blocks of the model "
            "(model.layers): lower it",
        )

    def due(self, step: int, fragment: int) -> bool:
        """Return whether the exchange of ``fragment`` starts after ``step``.

        The last fragment is exchanged after each ``every`` steps, the others at equal distances before it.
        """
        offset = (fragment + 1) * self.every // self.fragments
        return step % self.every == offset % self.every

    def fragment_of(self, block: int | None, blocks: int) -> int:
        """Return the fragment of block number ``block``; None is what follows the last block."""
        return (blocks - 1 if block is None else block) * self.fragments // blocks
