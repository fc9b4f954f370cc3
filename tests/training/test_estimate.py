"""How long a run will take, said before it starts."""

from __future__ import annotations

import time

import pytest
import torch

from caat.training import estimate


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.01234, "0.012 s"),
        (9.96, "10 s"),
        (75, "75 s"),
        (200, "3.3 min"),
        (3599, "60 min"),
        (3 * 3600, "3.0 h"),
        (86400, "24 h"),
        (250 * 86400, "250 days"),
    ],
)
def test_in_words(seconds, words):
    assert estimate.in_words(seconds) == words


def test_a_step_and_the_whole():
    assert estimate.forecast(720, 30010).startswith("about 12 min a step, 250 days in all, if it computes")


def test_the_rate_is_that_of_products(monkeypatch):
    """On this clock every third takes a hundredth of a second and others more, whatever the machine does."""
    now, count = [0.0], [0]

    def product(result):
        count[0] += 1
        now[0] += 0.01 * (1 + count[0] % 3)

    monkeypatch.setattr(estimate, "_finished", product)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    rate = estimate.product_rate(torch.device("cpu"), "fp32")
    assert rate == pytest.approx(2 * estimate.SIDE["cpu"] ** 3 / 0.01)


@pytest.mark.parametrize(
    ("device", "precision", "rates", "says"),
    [
        ("cpu", "bf16", {"fp32": 70e9, "bf16": 1e9}, "70 times as fast in float32 as in bfloat16"),
        ("cpu", "bf16", {"fp32": 70e9, "bf16": 140e9}, ""),
        ("cpu", "fp32", {}, ""),
        ("cuda", "bf16", {}, ""),
    ],
)
def test_cpus_that_emulate_bfloat16_are_named(monkeypatch, device, precision, rates, says):
    monkeypatch.setattr(estimate, "product_rate", lambda device, precision: rates[precision])
    note = estimate.precision_note(torch.device(device), precision, rates.get(precision, 1e9))
    assert says in note if says else not note
