"""Settings of training on several islands: `islands.*`. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from math import isfinite

from conf.checks import require, require_choice, require_positive
from conf.codec import parse_codec
from conf.field import default_of, setting
from conf.lighthouse import split_address
from conf.schedule import SCHEDULE_HELP, TOPOLOGY_HELP, ScheduleSpec

METHODS = ("auto", "none", "average", "diloco", "slamb", "dcs3gd")
# Settings that apply only to some methods, by name. auto counts as diloco.
ONLY = {
    "lr": ("auto", "diloco"),
    "momentum": ("auto", "diloco"),
    "eager": ("auto", "diloco"),
    "rho": ("slamb",),
    "beta3": ("slamb",),
    "lambda0": ("dcs3gd",),
}
# Settings that need islands.join, and the methods that go with it.
JOINING, JOINABLE = ("name", "wait_for", "timeout"), ("auto", "average", "diloco")
# Codecs that the ranks must encode together: a round that fails would leave them different.
TOGETHER = ("powersgd", "randomk")


@dataclass
class IslandsConfig:
    """Outer steps: islands train on their own and exchange only changes of their weights, now and then.

    `parallel.islands` sets their number. With one island there is nothing to exchange, but the outer
    optimizer still acts, which shows its effect alone.
    """

    method: str = setting(
        "auto",
        "What an exchange does: average (the mean of the islands' weights), diloco (the mean change is the "
        "gradient of an outer SGD with Nesterov momentum), slamb (average, and a part of LAMB's momentum is "
        "averaged in each step), dcs3gd (average after every step, beside the next one, whose gradient is "
        "corrected for the delay) or none. auto is diloco with several islands, and none with one.",
    )
    every: int = setting(
        30, "Number of steps between exchanges (H). SLAMB's authors use 100; dcs3gd needs 1."
    )
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
    eager: bool = setting(
        False,
        "diloco: go on at once from the outer step of the island's own change, while the exchange takes as "
        "long as the next `every` steps.",
    )
    rho: float = setting(0.1, "slamb: share of the momentum that is averaged in each step.")
    beta3: float = setting(
        0.99,
        "slamb: confidence in a number whose momentum was last averaged n steps ago is beta3 to the power n. "
        "It sets the step size between those of a large batch and of an island's own batch.",
    )
    lambda0: float = setting(
        0.2, "dcs3gd: norm of the correction of the gradient, in units of the norm of the gradient."
    )
    codec: str = setting("none", "Codec of the exchanged changes, any of data_sync.codec.")
    feedback: bool = setting(
        True, "Add what a biased codec lost of a change to the next one (error feedback)."
    )
    schedule: str = setting(
        "none",
        "How changes, and the momentum of slamb, travel: "
        + SCHEDULE_HELP.format(node="island")
        + " Messages of a few numbers are left to the backend.",
    )
    topology: str | None = setting(None, TOPOLOGY_HELP.format(nodes="islands"))

    join: str | None = setting(
        None,
        "Address HOST:PORT of a lighthouse (`caat islands`). This run is then one island, and exchanges with "
        "the runs that are there at the same time; all may come and go. Instead of parallel.islands.",
    )
    name: str | None = setting(
        None,
        "With `join`: name of this island, different for each. The order of its data depends on it. Default: "
        "the name of the run folder.",
    )
    wait_for: int = setting(
        1,
        "With `join`: number of islands, this one included, to wait for before the first step, for at most "
        "`timeout` seconds.",
    )
    timeout: float = setting(
        60.0,
        "With `join`: seconds to wait for the other islands to come to a round, and for each 16 MiB of an "
        "exchange. After that, training continues, and the round is tried again later.",
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
        # Turns are numbered with 16 bits.
        require(1 / 32767 <= self.rho <= 1.0, f"islands.rho={self.rho} is outside [1/32767, 1]")
        require(0.0 <= self.beta3 <= 1.0, f"islands.beta3={self.beta3} is outside [0, 1]")
        require(
            isfinite(self.lambda0) and self.lambda0 >= 0,
            f"islands.lambda0={self.lambda0} must not be negative (0.2, say)",
        )
        parse_codec(self.codec)
        self.route.refuse_codec(self.codec)
        self._check_method()
        self._check_joining()

    @property
    def route(self) -> ScheduleSpec:
        """The settings of the schedule. Raises ``ValueError`` unless they go together."""
        return ScheduleSpec("islands", "islands", self.schedule, self.topology)

    def _check_method(self) -> None:
        """Raise ``ValueError`` unless all settings have an effect with the method."""
        if self.method == "none":
            for each in fields(self):
                if each.name != "method":
                    self._require_default(each.name, "islands.method=none exchanges nothing")
        for name, methods in ONLY.items():
            if self.method not in methods:
                owners = " or ".join(method for method in methods if method != "auto")
                self._require_default(name, f"it belongs to {owners}, not to islands.method={self.method}")
        if self.method == "dcs3gd":
            require(
                self.every == 1,
                f"islands.method=dcs3gd exchanges after every step: set islands.every=1, not {self.every}",
            )
            for name in ("alpha", "fragments"):
                self._require_default(name, "islands.method=dcs3gd exchanges all weights after every step")
        if self.eager:
            for name in ("delay", "alpha"):
                self._require_default(name, "with islands.eager an exchange takes a whole round")

    def _check_joining(self) -> None:
        if self.join is None:
            for name in JOINING:
                self._require_default(name, "it is for a run that joins others with islands.join")
            return
        split_address(self.join, "islands.join")
        require_positive(islands__timeout=self.timeout, islands__wait_for=self.wait_for)
        require(
            self.name is None or re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.name) is not None,
            f"islands.name={self.name} is no name: use up to 64 letters, digits, dots, dashes and "
            "underscores",
        )
        alone = "leave islands.join out, and give parallel.islands for islands that are one job"
        require(
            self.method in JOINABLE,
            f"islands.method={self.method} does not go with islands.join: {alone}, or one of "
            f"{', '.join(JOINABLE)}",
        )
        require(not self.eager, f"islands.eager does not go with islands.join: {alone}")
        require(
            self.fragments == 1,
            f"islands.fragments={self.fragments} does not go with islands.join, where a round is of "
            f"the whole model: {alone}",
        )
        require(
            not self.route,
            f"islands.schedule={self.schedule} does not go with islands.join: a schedule is for one number "
            f"of islands, and theirs changes from round to round; leave islands.schedule out, or {alone}",
        )
        codec = parse_codec(self.codec)
        require(
            codec.kind not in TOGETHER or codec.index is not None,
            f"islands.codec={self.codec} does not go with islands.join: its messages are summed before they "
            f"are decoded, which a lost island would spoil. Choose another codec, or {alone}",
        )

    def _require_default(self, name: str, why: str) -> None:
        default = next(default_of(each) for each in fields(self) if each.name == name)
        require(
            getattr(self, name) == default,
            f"islands.{name}={getattr(self, name)} has no effect: {why}; leave it out",
        )

    def resolved(self, islands: int) -> str:
        """Return the method for this number of islands: any of METHODS but auto."""
        several = islands > 1 or self.join is not None
        return ("diloco" if several else "none") if self.method == "auto" else self.method

    def outer_optimizer(self, islands: int) -> tuple[float, float]:
        """Return learning rate and momentum of the outer optimizer; an average is a step of 1 without any."""
        return (self.lr, self.momentum) if self.resolved(islands) == "diloco" else (1.0, 0.0)

    def describe(self, islands: int) -> str:
        """Return what is exchanged and when, in a few words."""
        parts = [f"{self.resolved(islands)} every {self.every} step{'s' if self.every > 1 else ''}"]
        parts += [f"{self.fragments} fragments"] * (self.fragments > 1) + ["eager"] * self.eager
        parts += [f"delay {self.delay}"] * (self.delay > 0) + [f"codec {self.codec}"] * (self.codec != "none")
        parts += [f"along {self.route.describe()}"] * bool(self.route)
        return ", ".join(parts)

    @property
    def lag(self) -> int:
        """Number of steps between the start of an exchange and the application of its result."""
        if self.method == "dcs3gd":
            return 1
        return self.every if self.eager else self.delay

    def check(self, islands: int, layers: int, optimizer: str) -> None:
        """Raise ``ValueError`` unless these fit ``islands`` islands, ``layers`` blocks and the optimizer."""
        require(
            self.method != "slamb" or optimizer == "lamb",
            f"islands.method=slamb averages the momentum of LAMB, not of optim.name={optimizer}: set "
            "optim.name=lamb",
        )
        require(
            self.join is None or islands == 1,
            f"parallel.islands={islands} does not go with islands.join={self.join}: a run that joins others "
            "is one island. Leave one of the two out",
        )
        if self.resolved(islands) == "none":
            require(
                islands == 1,
                f"islands.method=none does not go with parallel.islands={islands}: the islands would train "
                "different models; set islands.method=diloco or average",
            )
            default = IslandsConfig(method=self.method)
            other = [name for name, value in vars(self).items() if value != getattr(default, name)]
            given = ", ".join(f"islands.{name}={_written(getattr(self, name))}" for name in other)
            usual = " ".join(f"islands.{name}={_written(getattr(default, name))}" for name in other)
            require(
                not other,
                f"{given} has no effect with one island: give the default, {usual}, parallel.islands=2 "
                "or more, or islands.method to see the effect of the outer optimizer alone",
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


def _written(value: object) -> object:
    return "null" if value is None else value
