"""Learning rates at the points where they are known."""

from __future__ import annotations

import pytest

from caat.training.schedule import learning_rate
from conf.optim import OptimConfig


def rates(steps: int, **settings) -> list[float]:
    c = OptimConfig(lr=1.0, min_lr=0.1, **settings)
    return [learning_rate(step, steps, c) for step in range(1, steps + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_warm_up_is_linear(schedule):
    assert rates(100, schedule=schedule, warmup_steps=10)[:10] == pytest.approx(
        [i / 10 for i in range(1, 11)]
    )


def test_cosine_and_linear_meet_half_way_and_at_the_end():
    for schedule in ("cosine", "linear"):
        by_step = rates(110, schedule=schedule, warmup_steps=10)
        assert by_step[59] == pytest.approx(0.55)
        assert by_step[-1] == pytest.approx(0.1)
    assert rates(110, schedule="cosine", warmup_steps=10)[34] == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)


def test_constant_stays():
    assert set(rates(50, schedule="constant", warmup_steps=0)) == {1.0}


def test_wsd_is_stable_then_decays():
    by_step = rates(100, schedule="wsd", warmup_steps=10, decay_steps=20)
    assert set(by_step[9:80]) == {1.0}
    assert by_step[89] == pytest.approx(0.55) and by_step[99] == pytest.approx(0.1)
    assert rates(100, schedule="wsd", warmup_steps=10)[89] == 1.0
