"""The link that islands need waits exactly as long as it may, whatever is exchanged and how."""

from __future__ import annotations

import math

import pytest

from caat.planning.island_traffic import SMALL, exchange_bytes, island_wait
from caat.planning.layouts import layout_of
from caat.planning.link_needed import rate_needed
from caat.planning.prediction import Link, MessageCost
from launch.run.compose import compose

WAYS = {
    "diloco": [],
    "beside training": ["islands.delay=2", "islands.alpha=0.5"],
    "eager": ["islands.eager=true"],
    "fragments": ["islands.fragments=4", "islands.delay=1", "islands.alpha=0.5"],
    "int4": ["islands.codec=int4"],
    "slamb": ["optim=lamb", "islands.method=slamb"],
    "along a schedule": ["islands.schedule=auto", "islands.topology=ring:4"],
}


def settings(*more: str):
    config = compose(["model=130m", "parallel.tensor=1", "parallel.islands=4", *more])
    return config, layout_of(config, 8)


@pytest.mark.parametrize("more", WAYS.values(), ids=WAYS)
def test_the_wait_at_the_needed_rate_is_the_share(more):
    config, layout = settings(*more)
    link = Link(math.nan, 1e-3, MessageCost(1e-4))
    for waiting, step in ((0.02, 1.0), (0.3, 0.5)):
        rate = rate_needed(config, layout, link, step_seconds=step, waiting=waiting)
        wait = island_wait(config, layout, Link(rate, link.delay, link.cost), step)
        assert wait / (wait + step) == pytest.approx(waiting, rel=1e-6)
        more_wait = island_wait(config, layout, Link(0.9 * rate, link.delay, link.cost), step)
        assert more_wait > wait


def test_by_hand():
    config, layout = settings("islands.every=50")
    rate = rate_needed(config, layout, Link(1.0, 0.01), step_seconds=9.0, waiting=0.1)
    # A tenth of the time is 1 s a step, 50 s a round; small messages wait for their delay in every step.
    around = 2 * 3 * 0.01
    assert rate == pytest.approx(exchange_bytes(config, layout) / (50 * (1 - SMALL * around) - around))


def test_the_processes_of_an_island_share_the_links_of_a_file(tmp_path):
    """A file that gives the rate of a link is worth the same as that rate for links that give none."""
    named, free = tmp_path / "named.json", tmp_path / "free.json"
    named.write_text('{"nodes": 2, "links": [[0, 1, "1gbit", "20ms"], [1, 0, "1gbit", "20ms"]]}')
    free.write_text('{"nodes": 2, "links": [[0, 1], [1, 0]]}')
    link = Link(125e6 / 8, 0.02, sharers=8)

    def settings(file):
        more = ["parallel.tensor=2", "islands.schedule=auto", f"islands.topology={file}"]
        config = compose(["model=130m", "parallel.islands=2", *more])
        return config, layout_of(config, 16)

    waits = [island_wait(*settings(file), link, 1.0) for file in (named, free)]
    assert waits[0] == pytest.approx(waits[1], rel=1e-12) and waits[0] > 0
    assert rate_needed(*settings(named), link, step_seconds=1.0, waiting=0.5) is None
    assert rate_needed(*settings(free), link, step_seconds=1.0, waiting=0.5) is not None


def test_no_rate_helps_against_delay_or_cores():
    config, layout = settings()
    assert rate_needed(config, layout, Link(1.0, 0.1), step_seconds=1.0, waiting=0.02) is None
    busy = Link(1.0, 0.0, MessageCost(0.0, rate=1e6))
    assert rate_needed(config, layout, busy, step_seconds=1.0, waiting=0.02) is None
