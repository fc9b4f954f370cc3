"""What the planner's formulas say of benchmark rows, by hand."""

from __future__ import annotations

import pytest

from caat.planning.parameters import local_parameters
from caat.planning.prediction import Link, MessageCost
from conf.bench import BenchDataConfig, BenchIslandsConfig
from eval.speed.messages import Messages
from eval.speed.predicted import errors_of, with_data_prediction, with_island_prediction
from eval.speed.replicas import NOTHING, PLAIN

RATE = 1e6
NUMBERS = sum(p.numbers for p in local_parameters(BenchDataConfig().model, 1, 1))


def rows(*modes: str) -> list[dict]:
    return [{"mode": mode, "step_ms": 2000.0} for mode in modes]


def test_steps_of_replicas():
    config = BenchDataConfig(codecs=["none", "bfloat16"])
    nothing, peer, exact, half = with_data_prediction(
        rows(NOTHING, PLAIN, "none", "bfloat16"), config, Link(RATE, cost=MessageCost(0.5))
    )
    assert nothing["predicted_ms"] == 2000 and peer["predicted_ms"] is None
    # One of two replicas sends half of the gradients and half of the weights, in two messages.
    assert exact["predicted_ms"] == pytest.approx(2000 + 1e3 * (2 * 0.5 + 4 * NUMBERS / RATE), rel=1e-4)
    assert half["predicted_ms"] == pytest.approx(2000 + 1e3 * (2 * 0.5 + 2 * NUMBERS / RATE), rel=1e-4)
    assert errors_of([nothing, peer, exact | {"step_ms": exact["predicted_ms"] / 1.1}]).startswith(
        "Predicted and measured steps differ by 10.0% in the median of 1 rows"
    )


def test_steps_of_islands():
    config = BenchIslandsConfig(codecs=["none"], every=10)
    measured = rows(NOTHING, "diloco, none", "synchronous, none", "diloco, none, delay 5")
    _, outer, every, late = with_island_prediction(measured, config, Link(RATE))
    # A round sends half of the changes to the other island, and then the sums of the own half.
    assert outer["predicted_ms"] == pytest.approx(2000 + 1e3 * 4 * NUMBERS / RATE / 10, rel=1e-4)
    assert every["predicted_ms"] == pytest.approx(2000 + 1e3 * 4 * NUMBERS / RATE, rel=1e-4)
    # Five steps of 2 s hide as many seconds of the exchange.
    hidden = min(5 * 2.0, 4 * NUMBERS / RATE)
    assert outer["predicted_ms"] - late["predicted_ms"] == pytest.approx(1e3 * hidden / 10, rel=1e-4)


def test_figures_survive_json():
    slow = Messages(1e-4, MessageCost(1e-3, 1e9))
    assert Messages.of([slow.figures()]) == slow
    free = Messages(1e-5, MessageCost(0.0))
    assert Messages.of([free.figures()]) == free and free.figures()["core_bytes_per_second"] is None
