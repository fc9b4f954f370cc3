"""The slowest link between islands with which a run waits no longer than a share of its time."""

from __future__ import annotations

from dataclasses import replace
from math import log

from scipy.optimize import bisect

from caat.planning.island_traffic import island_wait
from caat.planning.layouts import Layout
from caat.planning.prediction import Link
from conf.schema import Config

# Bytes/s between which the rate is searched.
SLOWEST, FASTEST = 1.0, 1e18


def rate_needed(
    config: Config, layout: Layout, link: Link, *, step_seconds: float, waiting: float
) -> float | None:
    """Return the least bytes/s at which the wait for other islands is the share ``waiting`` of the time.

    It is the rate of one process's part of the link, whose delay and cost of messages are those of ``link``,
    and ``step_seconds`` is a step without the wait. None: even without bytes, the wait is longer, or the
    file of a network gives the rates of all links.
    """
    allowed = step_seconds * waiting / (1 - waiting)

    def excess(log_rate: float) -> float:
        rate = SLOWEST * (FASTEST / SLOWEST) ** log_rate
        return island_wait(config, layout, replace(link, rate=rate), step_seconds) - allowed

    slowest, fastest = excess(0.0), excess(1.0)
    if fastest > 0 or slowest == fastest:
        return None
    found = bisect(excess, 0.0, 1.0, xtol=1e-12 / log(FASTEST / SLOWEST)) if slowest > 0 else 0.0
    return SLOWEST * (FASTEST / SLOWEST) ** found
