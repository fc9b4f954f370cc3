"""When it is time to save, by a clock that the test sets."""

from __future__ import annotations

import pytest

from caat.training.checkpoint import pace as pacing
from caat.training.checkpoint.pace import Pace


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: now[0])
    return now


def due_after(pace: Pace, clock: list[float], limit: int = 100_000) -> int:
    """Seconds until a save is due, ``limit`` at most."""
    start = clock[0]
    while not pace.due and clock[0] - start < limit:
        clock[0] += 1
    return int(clock[0] - start)


def test_minutes_after_the_last_save_whatever_it_was_for(clock):
    pace = Pace(30)
    assert due_after(pace, clock) == 1800
    assert due_after(Pace(0.5), clock) == 30, "nothing has been spent on saves yet"
    pace.begin()
    clock[0] += 600
    pace.begin()
    assert due_after(pace, clock) == 1800


def test_never_at_0(clock):
    assert due_after(Pace(0), clock) == 100_000


@pytest.mark.parametrize("stands", [True, False])
def test_saving_takes_at_most_three_per_cent(clock, stands):
    """Each save takes 90 s: by standing still, or of a processor while training goes on beside it."""
    pace, started, saves = Pace(10), clock[0], 20
    for _ in range(saves):
        due_after(pace, clock)
        pace.begin()
        if stands:
            with pace.standing():
                clock[0] += 90
        else:
            clock[0] += 90
            pace.worked(90)
    due_after(pace, clock)
    assert 0.029 <= saves * 90 / (clock[0] - started) <= 0.0301
