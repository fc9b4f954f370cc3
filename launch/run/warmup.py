"""Shortens a default warm-up to fit the number of steps."""

from __future__ import annotations

import sys
from functools import cache

from caat.parallel.world import is_first_rank
from conf.schema import Config


def shorten_warmup(config: Config) -> None:
    """If an ``optim.warmup_steps`` that was not given does not fit into the run, use a tenth of the steps."""
    steps, own = config.train.steps, config.optim.warmup_steps
    room = steps - config.optim.decay(steps)
    if 0 <= room < own:
        config.optim.warmup_steps = min(max(1, steps // 10), room)
        _note(own, config.optim.warmup_steps, steps)


@cache
def _note(own: int, shorter: int, steps: int) -> None:
    """Print the note once for all runs of a sweep."""
    if is_first_rank():
        print(
            f"note: optim.warmup_steps is {shorter} instead of {own}, to fit train.steps={steps}",
            file=sys.stderr,
        )
